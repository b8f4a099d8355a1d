// A whole network for Python: put together block by block, checked as it comes; then gradients, updates and scores.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <vector>

#include "bindings.h"
#include "network.h"
#include "wiring.h"

namespace py = pybind11;

namespace convlogic {
namespace {

class NativeNetwork {
public:
    NativeNetwork(std::array<int64_t, 3> image, int64_t num_classes, float tau)
        : image_(image), num_classes_(num_classes), tau_(tau) {}

    void add_conv(Address selection, int64_t kernels, int64_t gates, Pair kernel, Pair stride, Pair padding,
                  int64_t pool) {
        const auto [channels, height, width] = image_out_;
        if (int64_t(convs_.size()) == max_convs)
            throw std::invalid_argument("more than " + std::to_string(max_convs) + " conv blocks");
        const auto out = [&](int64_t size, int64_t Pair::* axis) {
            return tree_output(size, kernel.*axis, stride.*axis, padding.*axis, pool);
        };
        NetworkConv conv{};
        leaves_.push_back(
            leaf_pixels(pointer<int32_t>(selection), kernels, gates, channels, {height, width}, kernel, padding));
        conv.leaves = leaves_.back().data();
        conv.channels = channels, conv.height = height, conv.width = width;
        conv.padding_y = padding.first, conv.padding_x = padding.second;
        conv.kernels = kernels, conv.out_height = out(height, &Pair::first), conv.out_width = out(width, &Pair::second);
        conv.stride_y = stride.first, conv.stride_x = stride.second;
        conv.depth = depth_of(gates), conv.pool = int(pool), conv.first_gate = num_gates_;
        if (conv.out_height < 1 || conv.out_width < 1)
            throw std::invalid_argument("conv block " + std::to_string(convs_.size() + 1) + ": the image is too small");
        image_out_ = {kernels, conv.out_height, conv.out_width};
        layers_.push_back({{}, num_gates_, kernels * gates});
        num_gates_ += kernels * gates;
        convs_.push_back(conv);
    }

    // The trees of a forest, and how many gates each of its dense layers has, the one next to the input first.
    void set_forest(Address leaves, Address gate_rows, int64_t trees, int64_t gates, std::vector<int64_t> layer_sizes) {
        const int64_t features = image_out_[0] * image_out_[1] * image_out_[2];
        depth_ = depth_of(gates), trees_ = trees, first_forest_gate_ = num_gates_;
        if (convs_.empty() || trees % num_classes_)
            throw std::invalid_argument("a network needs a conv block, and " + std::to_string(trees) +
                                        " outputs that divide among its classes");
        forest_leaves_ = checked_indices("leaves", pointer<int64_t>(leaves), trees, gates + 1, features, "features");
        const std::vector<int32_t> rows = checked_gate_rows(pointer<int64_t>(gate_rows), trees, gates);
        std::vector<int32_t> places(rows.size());
        for (size_t i = 0; i < rows.size(); ++i) places[size_t(rows[i])] = int32_t(num_gates_ + int64_t(i));
        auto next = places.begin();
        for (const int64_t size : layer_sizes) {
            if (size < 0 || size > places.end() - next) throw std::invalid_argument("layer sizes exceed the forest");
            layers_.push_back({{next, next + size}, num_gates_, size});
            next += size;
        }
        num_gates_ += trees * gates;
        coefficients_.resize(size_t(4 * num_gates_));
    }

    int64_t num_gates() const { return num_gates_; }

    // Of the logits at these addresses, one a layer in order; kept here for `gradients` and `scores`.
    void compute_coefficients(const std::vector<Address>& logits, int num_logits, bool discrete, int threads) {
        write_coefficients(logits, num_logits, discrete, threads, coefficients_.data());
    }

    // Moves the logits against the last gradients; moments are updated too. Then the coefficients of the new logits.
    void step(const std::vector<Address>& logits, const std::vector<Address>& means,
              const std::vector<Address>& variances, int num_logits, bool discrete, int threads, float lr,
              float mean_rate, float variance_rate, float variance_scale, float epsilon, float decay) {
        if (!blocks_) throw std::logic_error("a step needs gradients before it");
        if (means.size() != layers_.size() || variances.size() != layers_.size())
            throw std::invalid_argument("the moments of " + std::to_string(layers_.size()) + " layers are needed");
        const AdamW adamw{lr, mean_rate, variance_rate, variance_scale, epsilon, decay};
        std::vector<LogitLayer> layers = targets(logits, num_logits);
        for (size_t i = 0; i < layers.size(); ++i)
            layers[i].mean = pointer<float>(means[i]), layers[i].variance = pointer<float>(variances[i]);
        CONVLOGIC_DISPATCH(network_update, network(coefficients_.data()), layers.data(), int64_t(layers.size()),
                           num_logits, discrete, &adamw, partials_.data(), blocks_, threads);
        blocks_ = 1;  // the others are in it now
    }

    // The sum of the cross-entropy over a batch; the gradients stay here for `step`.
    double gradients(Address images, int64_t num_images, Address rows, Address labels, int64_t size, int threads) {
        if (size < 1) throw std::invalid_argument("gradients need at least one row");
        const Batch batch = checked(images, num_images, rows, labels, size, threads);
        const int64_t blocks = num_network_blocks(size);
        std::array<double, max_network_blocks> losses;
        blocks_ = 0;
        partials_.resize(size_t(blocks * num_gates_ * 4));
        require_memory(CONVLOGIC_DISPATCH(network_gradients, network(coefficients_.data()), batch, losses.data(),
                                          partials_.data()));
        blocks_ = blocks;
        double loss = 0;
        for (int64_t block = 0; block < blocks; ++block) loss += losses[size_t(block)];
        return loss;
    }

    // Class scores [size][classes] of values [input_size][size], and the coefficients [num_gates][4] of the logits at
    // these addresses; nothing stays here.
    void forward(Address values, int64_t size, const std::vector<Address>& logits, int num_logits, bool discrete,
                 Address coefficients, Address scores, int threads) const {
        write_coefficients(logits, num_logits, discrete, threads, pointer<float>(coefficients));
        Batch batch{};
        batch.values = pointer<float>(values), batch.size = size, batch.threads = threads;
        require_memory(
            CONVLOGIC_DISPATCH(network_scores, network(pointer<float>(coefficients)), batch, pointer<float>(scores)));
    }

    // From the gradient of these scores those of the logits, one a layer in order.
    void backward(Address values, int64_t size, Address grad_scores, const std::vector<Address>& logits, int num_logits,
                  Address coefficients, const std::vector<Address>& gradients, int threads) const {
        std::vector<LogitLayer> layers = targets(logits, num_logits);
        if (gradients.size() != layers.size() || size < 1)
            throw std::invalid_argument("the gradients of " + std::to_string(layers_.size()) +
                                        " layers are needed, of at least one sample");
        for (size_t i = 0; i < layers.size(); ++i) layers[i].gradient = pointer<float>(gradients[i]);
        Batch batch{};
        batch.values = pointer<float>(values), batch.grad_scores = pointer<float>(grad_scores);
        batch.size = size, batch.threads = threads;
        const Network net = network(pointer<float>(coefficients));
        const int64_t blocks = num_network_blocks(size);
        const std::unique_ptr<float[]> partials(new float[size_t(blocks * num_gates_ * 4)]);
        require_memory(CONVLOGIC_DISPATCH(network_gradients, net, batch, nullptr, partials.get()));
        CONVLOGIC_DISPATCH(network_logit_gradients, net, layers.data(), int64_t(layers.size()), num_logits,
                           partials.get(), blocks, threads);
    }

    void scores(Address images, int64_t num_images, Address scores, int threads) {
        Batch batch{};
        batch.images = pointer<uint8_t>(images), batch.size = num_images, batch.threads = threads;
        require_memory(
            CONVLOGIC_DISPATCH(network_scores, network(coefficients_.data()), batch, pointer<float>(scores)));
    }

private:
    struct Layer {
        std::vector<int32_t> places;
        int64_t first_gate, gates;
    };

    std::vector<LogitLayer> targets(const std::vector<Address>& logits, int num_logits) const {
        if (logits.size() != layers_.size() || (num_logits != 16 && num_logits != 4))
            throw std::invalid_argument("the logits of " + std::to_string(layers_.size()) +
                                        " layers are needed, 16 or 4 a gate");
        std::vector<LogitLayer> targets;
        for (size_t i = 0; i < layers_.size(); ++i) {
            const Layer& layer = layers_[i];
            targets.push_back({pointer<float>(logits[i]), nullptr, nullptr, nullptr,
                               layer.places.empty() ? nullptr : layer.places.data(), layer.first_gate, layer.gates});
        }
        return targets;
    }

    void write_coefficients(const std::vector<Address>& logits, int num_logits, bool discrete, int threads,
                            float* coefficients) const {
        const std::vector<LogitLayer> layers = targets(logits, num_logits);
        CONVLOGIC_DISPATCH(network_update, network(coefficients), layers.data(), int64_t(layers.size()), num_logits,
                           discrete, nullptr, nullptr, 0, threads);
    }

    Network network(float* coefficients) const {
        const auto [channels, height, width] = image_;
        return {convs_.data(),
                int64_t(convs_.size()),
                forest_leaves_.data(),
                image_out_[0] * image_out_[1] * image_out_[2],
                trees_,
                first_forest_gate_,
                depth_,
                channels * height * width,
                num_classes_,
                num_gates_,
                tau_,
                coefficients};
    }

    Batch checked(Address images, int64_t num_images, Address rows, Address labels, int64_t size, int threads) const {
        Batch batch{};
        batch.images = pointer<uint8_t>(images), batch.rows = pointer<int64_t>(rows);
        batch.labels = pointer<int64_t>(labels), batch.size = size, batch.threads = threads;
        for (int64_t i = 0; i < size; ++i) {
            const int64_t row = batch.rows[i];
            if (row < 0 || row >= num_images)
                throw std::out_of_range("row " + std::to_string(row) + " is outside the " + std::to_string(num_images) +
                                        " images");
            if (batch.labels[row] < 0 || batch.labels[row] >= num_classes_)
                throw std::out_of_range("label " + std::to_string(batch.labels[row]) + " of image " +
                                        std::to_string(row) + " is outside the " + std::to_string(num_classes_) +
                                        " classes");
        }
        return batch;
    }

    std::array<int64_t, 3> image_, image_out_ = image_;
    int64_t num_classes_;
    float tau_;
    std::vector<NetworkConv> convs_;
    std::vector<std::vector<int32_t>> leaves_;
    std::vector<int32_t> forest_leaves_;
    std::vector<Layer> layers_;
    int64_t num_gates_ = 0, trees_ = 0, first_forest_gate_ = 0, blocks_ = 0;
    int depth_ = 0;
    std::vector<float> coefficients_, partials_;
};

}  // namespace

void bind_network(py::module_& module) {
    using py::arg;
    using release_gil = py::call_guard<py::gil_scoped_release>;
    module.attr("max_convs") = max_convs;
    py::class_<NativeNetwork>(module, "Network")
        .def(py::init<std::array<int64_t, 3>, int64_t, float>(), py::kw_only(), arg("image"), arg("num_classes"),
             arg("tau"))
        .def("add_conv", &NativeNetwork::add_conv, py::kw_only(), arg("selection"), arg("kernels"), arg("gates"),
             arg("kernel"), arg("stride"), arg("padding"), arg("pool"))
        .def("set_forest", &NativeNetwork::set_forest, py::kw_only(), arg("leaves"), arg("gate_rows"), arg("trees"),
             arg("gates"), arg("layer_sizes"))
        .def_property_readonly("num_gates", &NativeNetwork::num_gates)
        .def("compute_coefficients", &NativeNetwork::compute_coefficients, release_gil(), py::kw_only(), arg("logits"),
             arg("num_logits"), arg("discrete"), arg("threads"))
        .def("step", &NativeNetwork::step, release_gil(), py::kw_only(), arg("logits"), arg("means"), arg("variances"),
             arg("num_logits"), arg("discrete"), arg("threads"), arg("lr"), arg("mean_rate"), arg("variance_rate"),
             arg("variance_scale"), arg("epsilon"), arg("decay"))
        .def("gradients", &NativeNetwork::gradients, release_gil(), py::kw_only(), arg("images"), arg("num_images"),
             arg("rows"), arg("labels"), arg("size"), arg("threads"))
        .def("forward", &NativeNetwork::forward, release_gil(), py::kw_only(), arg("values"), arg("size"),
             arg("logits"), arg("num_logits"), arg("discrete"), arg("coefficients"), arg("scores"), arg("threads"))
        .def("backward", &NativeNetwork::backward, release_gil(), py::kw_only(), arg("values"), arg("size"),
             arg("grad_scores"), arg("logits"), arg("num_logits"), arg("coefficients"), arg("gradients"),
             arg("threads"))
        .def("scores", &NativeNetwork::scores, release_gil(), py::kw_only(), arg("images"), arg("num_images"),
             arg("scores"), arg("threads"));
}

}  // namespace convlogic
