"""Names that Verilog and C both take."""

import re
from typing import Final

# Of Verilog-2001 and, as most tools read it the same way, the words that SystemVerilog adds and a file may well be
# called by.
VERILOG_KEYWORDS: Final = frozenset(
    """
    always and assign automatic begin buf bufif0 bufif1 case casex casez cell cmos config deassign default defparam
    design disable edge else end endcase endconfig endfunction endgenerate endmodule endprimitive endspecify endtable
    endtask event for force forever fork function generate genvar highz0 highz1 if ifnone incdir include initial inout
    input instance integer join large liblist library localparam macromodule medium module nand negedge nmos nor
    noshowcancelled not notif0 notif1 or output parameter pmos posedge primitive pull0 pull1 pulldown pullup
    pulsestyle_ondetect pulsestyle_onevent rcmos real realtime reg release repeat rnmos rpmos rtran rtranif0 rtranif1
    scalared showcancelled signed small specify specparam strong0 strong1 supply0 supply1 table task time tran
    tranif0 tranif1 tri tri0 tri1 triand trior trireg unsigned use vectored wait wand weak0 weak1 while wire wor xnor
    xor
    alias assert assume before bind bins bit byte checker class clocking constraint context cover dist endclass
    endpackage endprogram expect export extends final first_match foreach global iff import inside interface intersect
    let local logic matches modport new null package packed priority program property protected pure rand randc ref
    sequence shortint shortreal soft solve string strong super tagged this throughout timeprecision timeunit type union
    unique untyped var virtual void weak wildcard with within
    """.split()
)
C_KEYWORDS: Final = frozenset(
    """
    alignas alignof asm auto bool break case char const constexpr continue default do double else enum extern false
    float for goto if inline int long main nullptr register restrict return short signed sizeof static static_assert
    struct switch thread_local true typedef typeof typeof_unqual union unsigned void volatile while
    """.split()
)


def safe_name(name: str) -> str:
    """A name as an identifier of Verilog and C: ASCII letters, digits and underscores, and no keyword of either.

    Whatever else is in it becomes an underscore, none of them first or last; "circuit" where nothing is left, and
    before a digit or a keyword. What is safe already but for underscores around it stays as it is.
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    if not name:
        return "circuit"
    if name[0].isdigit() or name in VERILOG_KEYWORDS | C_KEYWORDS:
        return f"circuit_{name}"
    return name
