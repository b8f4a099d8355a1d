// The whole network, group by group of samples.
#include "network.h"

#include "conv_tile.h"
#include "forest_tile.h"
#include "kernels.h"
#include "tree.h"

namespace convlogic::CONVLOGIC_ISA {
namespace {

constexpr int width = vector_width<float>;
constexpr int64_t tiles = group_lanes / conv_tile_lanes;
static_assert(conv_tile_lanes == tile_lanes<float> && group_lanes * sizeof(float) == forest_tile_bytes);

// What a thread holds of one group. Planes are [tile][input of conv i], features [feature][group_lanes].
struct Workspace {
    float *planes[max_convs], *grad_planes, *features, *grad_features, *classes;
    uint8_t* winners[max_convs];

    // With memory null only the bytes needed are counted.
    static size_t lay_out(const Network& net, bool backward, Workspace* to, char* memory) {
        size_t bytes = 0;
        const auto take = [&](int64_t size) {
            char* place = memory ? memory + bytes : nullptr;
            bytes += (size_t(size) + 127) / 128 * 128 + 64;  // rows of the same number in other sets of the cache
            return place;
        };
        int64_t largest = 0;
        for (int64_t i = 0; i < net.num_convs; ++i) {
            const NetworkConv& conv = net.convs[i];
            const int64_t size = conv.input_size() * int64_t(sizeof(float));
            to->planes[i] = reinterpret_cast<float*>(take(tiles * size));
            to->winners[i] = reinterpret_cast<uint8_t*>(take(group_lanes * conv.outputs()));
            if (i > 0 && size > largest) largest = size;
        }
        const int64_t row = group_lanes * int64_t(sizeof(float));
        to->features = reinterpret_cast<float*>(take(net.features * row));
        to->classes = reinterpret_cast<float*>(take(net.num_classes * row));
        if (backward) {
            // two: a block's input gradient is the next block's output gradient
            to->grad_planes = reinterpret_cast<float*>(take(2 * largest));
            to->grad_features = reinterpret_cast<float*>(take(net.features * row));
        }
        return bytes;
    }
};

// The transpose of 16 x 16 bytes: four rounds of perfect shuffles.
typedef uint8_t Bytes __attribute__((vector_size(16)));

CONVLOGIC_INLINE void transpose(Bytes (&rows)[16]) {
    for (int round = 0; round < 4; ++round) {
        Bytes shuffled[16];
        for (int i = 0; i < 8; ++i) {
            shuffled[2 * i] =
                __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            shuffled[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                                          13, 29, 14, 30, 15, 31);
        }
        for (int i = 0; i < 16; ++i) rows[i] = shuffled[i];
    }
}

// Zeros and ones of up to 16 images (null: zeros) as floats [pixel][lane] into the interior of padded planes.
void read_images(const uint8_t* const* images, int64_t channels, int64_t height, int64_t columns, int64_t padding_y,
                 int64_t padding_x, float* planes) {
    const int64_t size = channels * height * columns, padded_columns = columns + 2 * padding_x;
    int64_t channel_row = 0, column = 0;
    for (int64_t pixel = 0; pixel < size; pixel += 16) {
        const int64_t count = size - pixel < 16 ? size - pixel : 16;
        Bytes rows[16] = {};
        for (int lane = 0; lane < 16; ++lane)
            if (images[lane]) memcpy(&rows[lane], images[lane] + pixel, size_t(count));
        transpose(rows);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t channel = channel_row / height, row = channel_row % height;
            const int64_t place = (channel * (height + 2 * padding_y) + row + padding_y) * padded_columns;
            alignas(16) uint8_t lanes[16];
            memcpy(lanes, &rows[i], sizeof lanes);
            for (int lane = 0; lane < 16; lane += width)
                store(planes + (place + column + padding_x) * 16 + lane,
                      __builtin_convertvector(load_bytes<float>(lanes + lane), Vector<float>));
            if (++column == columns) column = 0, ++channel_row;
        }
    }
}

// Rows [size] of up to 16 samples' values (the other lanes: zeros) into the interior of padded planes.
void read_values(const float* values, int64_t size, int64_t count, int64_t channels, int64_t height, int64_t columns,
                 int64_t padding_y, int64_t padding_x, float* planes) {
    for (int64_t row = 0; row < channels * height; ++row) {
        const int64_t place = (row / height * (height + 2 * padding_y) + row % height + padding_y);
        float* to = planes + (place * (columns + 2 * padding_x) + padding_x) * 16;
        for (int64_t column = 0; column < columns; ++column, values += size, to += 16) {
            if (count >= 16) {
                memcpy(to, values, 16 * sizeof(float));
            } else {
                memset(to, 0, 16 * sizeof(float));
                if (count > 0) memcpy(to, values, size_t(count) * sizeof(float));
            }
        }
    }
}

struct Layout {
    OutputStrides strides;
    int64_t offset;
};

// Where block i writes: into the interior of the next one's planes, or into the features of the group.
Layout output_of(const Network& net, int64_t i, int64_t tile) {
    if (i + 1 == net.num_convs) {
        const NetworkConv& conv = net.convs[i];
        const int64_t cells = conv.out_height * conv.out_width;
        return {{cells * group_lanes, conv.out_width * group_lanes, group_lanes}, tile * conv_tile_lanes};
    }
    const NetworkConv& next = net.convs[i + 1];
    const int64_t row = next.padded_width() * conv_tile_lanes;
    return {{next.padded_height() * row, row, conv_tile_lanes},
            next.padding_y * row + next.padding_x * conv_tile_lanes};
}

ConvTile<float> tile_of(const Network& net, const NetworkConv& conv) {
    return {net.coefficients + 4 * conv.first_gate, conv.leaves,  conv.kernels, conv.out_height, conv.out_width,
            conv.stride_y * conv.padded_width(),    conv.stride_x};
}

OutputStrides winner_strides(const NetworkConv& conv) {
    return {conv.out_height * conv.out_width * conv_tile_lanes, conv.out_width * conv_tile_lanes, conv_tile_lanes};
}

void read_group(const Network& net, const Batch& batch, int64_t first, const Workspace& work) {
    const NetworkConv& conv = net.convs[0];
    for (int64_t tile = 0; tile < tiles; ++tile) {
        float* planes = work.planes[0] + tile * conv.input_size();
        const int64_t begin = first + tile * conv_tile_lanes;
        if (batch.values) {
            read_values(batch.values + begin, batch.size, batch.size - begin, conv.channels, conv.height, conv.width,
                        conv.padding_y, conv.padding_x, planes);
            continue;
        }
        const uint8_t* images[conv_tile_lanes];
        for (int64_t lane = 0; lane < conv_tile_lanes; ++lane) {
            const int64_t i = begin + lane;
            images[lane] = i < batch.size ? batch.images + (batch.rows ? batch.rows[i] : i) * net.input_size : nullptr;
        }
        read_images(images, conv.channels, conv.height, conv.width, conv.padding_y, conv.padding_x, planes);
    }
}

void forward_convs(const Network& net, const Workspace& work) {
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t i = 0; i < net.num_convs; ++i) {
            const NetworkConv& conv = net.convs[i];
            const Layout out = output_of(net, i, tile);
            float* y =
                i + 1 < net.num_convs ? work.planes[i + 1] + tile * net.convs[i + 1].input_size() : work.features;
            conv_tile_forward(conv.depth, conv.pool, tile_of(net, conv), work.planes[i] + tile * conv.input_size(),
                              y + out.offset, out.strides, work.winners[i] + tile * conv_tile_lanes * conv.outputs(),
                              winner_strides(conv));
        }
}

// The sums of each class's trees, divided by tau.
template <int depth>
void forward_forest(const Network& net, const Workspace& work) {
    const int64_t trees_a_class = net.trees / net.num_classes;
    memset(work.classes, 0, size_t(net.num_classes * group_lanes) * sizeof(float));
    for (int64_t k = 0; k < net.num_classes; ++k) {
        const int64_t first = k * trees_a_class;
        float* sums = work.classes + k * group_lanes;
        forest_tile_forward<float, depth>(
            net.coefficients + 4 * (net.first_gate + first * ((1 << depth) - 1)), net.leaves + (first << depth),
            trees_a_class, work.features,
            [=](int64_t, int i, Vector<float> value) { store(sums + i * width, load(sums + i * width) + value); });
        for (int64_t lane = 0; lane < group_lanes; ++lane) sums[lane] /= net.tau;
    }
}

template <int depth>
void backward_forest(const Network& net, const Workspace& work, float* partials, bool accumulate) {
    const int64_t trees_a_class = net.trees / net.num_classes;
    for (int64_t k = 0; k < net.num_classes; ++k) {
        const int64_t first = k * trees_a_class, first_gate = net.first_gate + first * ((1 << depth) - 1);
        forest_tile_backward<float, depth>(
            net.coefficients + 4 * first_gate, net.leaves + (first << depth), trees_a_class, work.features,
            [=](int64_t) { return work.classes + k * group_lanes; }, work.grad_features, partials + 4 * first_gate,
            accumulate);
    }
}

void backward_convs(const Network& net, const Workspace& work, float* partials, bool accumulate) {
    int64_t largest = 0;
    for (int64_t i = 1; i < net.num_convs; ++i)
        if (net.convs[i].input_size() > largest) largest = net.convs[i].input_size();
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t i = net.num_convs - 1; i >= 0; --i) {
            const NetworkConv& conv = net.convs[i];
            const Layout out = output_of(net, i, tile);
            const float* grad_y = i + 1 < net.num_convs ? work.grad_planes + (i + 1) % 2 * largest : work.grad_features;
            float* grad_x = i > 0 ? work.grad_planes + i % 2 * largest : nullptr;
            if (grad_x) memset(grad_x, 0, size_t(conv.input_size()) * sizeof(float));
            conv_tile_backward(conv.depth, conv.pool, tile_of(net, conv), work.planes[i] + tile * conv.input_size(),
                               grad_y + out.offset, out.strides,
                               work.winners[i] + tile * conv_tile_lanes * conv.outputs(), winner_strides(conv), grad_x,
                               partials + 4 * conv.first_gate, accumulate || tile > 0);
        }
}

// Scores become the gradient of the mean cross-entropy with respect to each class's sum; returns the group's loss.
double cross_entropy(const Network& net, const Batch& batch, int64_t first, float* classes) {
    double loss = 0;
    for (int64_t lane = 0; lane < group_lanes; ++lane) {
        float* z = classes + lane;
        const auto score = [=](int64_t k) -> float& { return z[k * group_lanes]; };
        if (first + lane >= batch.size) {
            for (int64_t k = 0; k < net.num_classes; ++k) score(k) = 0;
            continue;
        }
        const int64_t label = batch.labels[batch.rows ? batch.rows[first + lane] : first + lane];
        float largest = score(0), sum = 0;
        for (int64_t k = 1; k < net.num_classes; ++k) largest = score(k) > largest ? score(k) : largest;
        const float wanted = score(label) - largest;
        for (int64_t k = 0; k < net.num_classes; ++k) sum += score(k) = __builtin_expf(score(k) - largest);
        loss += __builtin_logf(sum) - wanted;
        const float scale = 1 / (net.tau * float(batch.size));
        for (int64_t k = 0; k < net.num_classes; ++k) score(k) = (score(k) / sum - (k == label)) * scale;
    }
    return loss;
}

// The gradient with respect to each class's sum.
void read_score_gradients(const Network& net, const Batch& batch, int64_t first, float* classes) {
    for (int64_t lane = 0; lane < group_lanes; ++lane)
        for (int64_t k = 0; k < net.num_classes; ++k)
            classes[k * group_lanes + lane] =
                first + lane < batch.size ? batch.grad_scores[(first + lane) * net.num_classes + k] / net.tau : 0;
}

// As far as the class scores, unless their gradient is given.
void forward_group(const Network& net, const Batch& batch, int64_t first, const Workspace& work) {
    read_group(net, batch, first, work);
    forward_convs(net, work);
    if (!batch.grad_scores) with_depth(net.depth, [&](auto depth) { forward_forest<depth.number>(net, work); });
}

// Lays a thread's workspace out; padding is zeroed once, kernels never write there. False without memory.
bool make_workspace(const Network& net, bool backward, Workspace* work) {
    const size_t bytes = Workspace::lay_out(net, backward, work, nullptr);
    char* memory = static_cast<char*>(scratch(bytes));
    if (!memory) return false;
    Workspace::lay_out(net, backward, work, memory);
    for (int64_t i = 0; i < net.num_convs; ++i) {
        const NetworkConv& conv = net.convs[i];
        if (conv.padding_y || conv.padding_x) memset(work->planes[i], 0, size_t(tiles * conv.input_size()) * 4);
    }
    return true;
}

}  // namespace

bool network_scores(const Network& net, const Batch& batch, float* scores) {
    const int64_t groups = num_groups(batch.size);
    if (!groups) return true;
    bool complete = true;
#pragma omp parallel num_threads(int(groups < batch.threads ? groups : batch.threads)) reduction(&& : complete)
    {
        Workspace work;
        complete = make_workspace(net, false, &work);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; ++group) {
            if (!complete) continue;
            const int64_t first = group * group_lanes;
            forward_group(net, batch, first, work);
            for (int64_t i = first; i < first + group_lanes && i < batch.size; ++i)
                for (int64_t k = 0; k < net.num_classes; ++k)
                    scores[i * net.num_classes + k] = work.classes[k * group_lanes + i - first];
        }
    }
    return complete;
}

bool network_gradients(const Network& net, const Batch& batch, double* losses, float* partials) {
    const int64_t groups = num_groups(batch.size), blocks = num_network_blocks(batch.size);
    bool complete = true;
#pragma omp parallel num_threads(int(blocks < batch.threads ? blocks : batch.threads)) reduction(&& : complete)
    {
        Workspace work;
        complete = make_workspace(net, true, &work);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < blocks; ++block) {
            if (!complete) continue;
            float* sums = partials + block * net.num_gates * 4;
            const int64_t begin = block * groups / blocks, end = (block + 1) * groups / blocks;
            if (!batch.grad_scores) losses[block] = 0;
            for (int64_t group = begin; group < end; ++group) {
                forward_group(net, batch, group * group_lanes, work);
                if (batch.grad_scores)
                    read_score_gradients(net, batch, group * group_lanes, work.classes);
                else
                    losses[block] += cross_entropy(net, batch, group * group_lanes, work.classes);
                memset(work.grad_features, 0, size_t(net.features * group_lanes) * sizeof(float));
                with_depth(net.depth,
                           [&](auto depth) { backward_forest<depth.number>(net, work, sums, group > begin); });
                backward_convs(net, work, sums, group > begin);
            }
        }
    }
    return complete;
}

}  // namespace convlogic::CONVLOGIC_ISA
