// Lets tests choose the order of threads and blocks.
#include "emulate.h"

extern "C" __attribute__((visibility("default"))) void set_schedule(int schedule) {
    emulate::schedule = schedule;
}
