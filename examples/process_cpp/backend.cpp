// A backend for refpeft in C++17 without dependencies: nn.linear and lora.linear, forward and vjp.
//
// The program answers requests of the protocol refpeft/1 (docs/protocol.md) until standard input ends. Everything is in
// this one file, in the order of a request's life: bytes, header, arrays, mathematics, answer.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

// ---------------------------------------------------------------------------------------------------- messages

struct Tensor {
    std::string dtype;           // "F32", "F64", "BF16", "BOOL"
    std::vector<size_t> shape;   // row-major
    std::vector<char> bytes;     // little-endian, as this machine is
};

struct Message {
    std::map<std::string, std::string> metadata;
    std::map<std::string, Tensor> tensors;
};

// The JSON of a request's header: {"__metadata__":{"key":"text",...},"name":{"dtype":"F32","shape":[2,3],
// "data_offsets":[0,24]},...}. Strings hold no escapes, numbers are natural, nothing is nested deeper than this.
class Header {
    const char *at, *end;

  public:
    explicit Header(const std::string &text) : at(text.data()), end(text.data() + text.size()) {}

    bool accept(char wanted) {
        while (at < end && *at == ' ') ++at;
        if (at == end || *at != wanted) return false;
        ++at;
        return true;
    }
    void expect(char wanted) {
        if (!accept(wanted)) throw std::runtime_error(std::string("the header lacks a ") + wanted);
    }
    std::string text() {
        expect('"');
        const char *start = at;
        while (at < end && *at != '"') {
            if (*at++ == '\\') throw std::runtime_error("the header has an escaped string");
        }
        std::string result(start, at);
        expect('"');
        return result;
    }
    std::vector<size_t> numbers() {
        std::vector<size_t> result;
        expect('[');
        while (!accept(']')) {
            if (!result.empty()) expect(',');
            size_t number = 0;
            for (; at < end && *at >= '0' && *at <= '9'; ++at) number = number * 10 + size_t(*at - '0');
            result.push_back(number);
        }
        return result;
    }
    template <typename Member> void object(Member member) {
        expect('{');
        for (bool first = true; !accept('}'); first = false) {
            if (!first) expect(',');
            std::string key = text();
            expect(':');
            member(key);
        }
    }
};

bool read_exactly(char *to, size_t size) { return std::fread(to, 1, size, stdin) == size; }

// One request; false where standard input ends, which ends the program.
bool read_message(Message &message) {
    uint64_t length;
    if (!read_exactly(reinterpret_cast<char *>(&length), 8)) return false;
    std::string text(length, ' ');
    if (!read_exactly(text.data(), length)) return false;
    message = Message();
    std::map<std::string, std::vector<size_t>> offsets;
    size_t size = 0;
    Header header(text);
    header.object([&](const std::string &name) {
        if (name == "__metadata__") {
            header.object([&](const std::string &key) { message.metadata[key] = header.text(); });
            return;
        }
        Tensor &tensor = message.tensors[name];
        header.object([&](const std::string &key) {
            if (key == "dtype") tensor.dtype = header.text();
            else if (key == "shape") tensor.shape = header.numbers();
            else offsets[name] = header.numbers();
        });
        size = std::max(size, offsets[name].at(1));
    });
    std::vector<char> data(size);
    if (!read_exactly(data.data(), size)) return false;
    for (auto &[name, tensor] : message.tensors)
        tensor.bytes.assign(data.begin() + offsets[name].at(0), data.begin() + offsets[name].at(1));
    return true;
}

std::string quoted(const std::string &text) {
    std::string result = "\"";
    for (char c : text) result += (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32) ? '\'' : c;
    return result + '"';
}

void write_message(const Message &message) {
    std::string header = "{\"__metadata__\":{";
    for (auto &[key, value] : message.metadata) {
        if (header.back() != '{') header += ',';
        header += quoted(key) + ':' + quoted(value);
    }
    header += '}';
    size_t start = 0;
    for (auto &[name, tensor] : message.tensors) {
        std::string shape;
        for (size_t n : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
        size_t stop = start + tensor.bytes.size();
        header += ',' + quoted(name) + ":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + shape +
                  "],\"data_offsets\":[" + std::to_string(start) + ',' + std::to_string(stop) + "]}";
        start = stop;
    }
    header += '}';
    uint64_t length = header.size();
    std::fwrite(&length, 8, 1, stdout);
    std::fwrite(header.data(), 1, length, stdout);
    for (auto &[name, tensor] : message.tensors) std::fwrite(tensor.bytes.data(), 1, tensor.bytes.size(), stdout);
    std::fflush(stdout);
}

// ------------------------------------------------------------------------------------------------------ arrays

// bfloat16: the upper half of a float, rounded to nearest even.
struct bfloat16 {
    uint16_t bits = 0;
    bfloat16() = default;
    explicit bfloat16(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = value != value ? 0x7fc0 : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    explicit operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

template <typename Storage> const char *dtype_of();
template <> const char *dtype_of<float>() { return "F32"; }
template <> const char *dtype_of<double>() { return "F64"; }
template <> const char *dtype_of<bfloat16>() { return "BF16"; }

// A matrix in the type that is computed with. T, transposed, costs nothing; rows of a batch x[*n,i] are prod(n).
template <typename T> struct Matrix {
    size_t rows = 0, columns = 0;
    std::vector<T> values;
    bool flipped = false;

    Matrix() = default;
    Matrix(size_t rows, size_t columns) : rows(rows), columns(columns), values(rows * columns) {}
    T &at(size_t i, size_t j) { return values[flipped ? j * rows + i : i * columns + j]; }
    T at(size_t i, size_t j) const { return values[flipped ? j * rows + i : i * columns + j]; }
    Matrix t() const {
        Matrix result = *this;
        std::swap(result.rows, result.columns);
        result.flipped = !flipped;
        return result;
    }
};

template <typename T> Matrix<T> operator*(const Matrix<T> &a, const Matrix<T> &b) {
    Matrix<T> result(a.rows, b.columns);
    for (size_t i = 0; i < a.rows; ++i)
        for (size_t j = 0; j < b.columns; ++j) {
            T sum = 0;
            for (size_t k = 0; k < a.columns; ++k) sum += a.at(i, k) * b.at(k, j);
            result.at(i, j) = sum;
        }
    return result;
}

template <typename T> Matrix<T> operator*(T factor, Matrix<T> a) {
    for (T &value : a.values) value *= factor;
    return a;
}

template <typename T> Matrix<T> operator+(Matrix<T> a, const Matrix<T> &b) {
    for (size_t i = 0; i < a.rows; ++i)
        for (size_t j = 0; j < a.columns; ++j) a.at(i, j) += b.at(b.rows == 1 ? 0 : i, j);  // one row stands for all
    return a;
}

template <typename T> Matrix<T> sum_of_rows(const Matrix<T> &a) {
    Matrix<T> result(1, a.columns);
    for (size_t i = 0; i < a.rows; ++i)
        for (size_t j = 0; j < a.columns; ++j) result.at(0, j) += a.at(i, j);
    return result;
}

// -------------------------------------------------------------------------------------------------- operations

// One request as mathematics sees it: inputs in, results out. Storage is what tensors hold, T what is computed with.
template <typename Storage, typename T> struct Call {
    const Message &request;
    Message &answer;

    bool has(const std::string &name) const { return request.tensors.count("input." + name) != 0; }
    T number(const std::string &name) const {
        return T(std::strtod(request.metadata.at("attribute." + name).c_str(), nullptr));
    }
    bool wanted(const std::string &name) const {
        return (',' + request.metadata.at("wanted") + ',').find(',' + name + ',') != std::string::npos;
    }
    Matrix<T> get(const std::string &name) const {
        const Tensor &tensor = request.tensors.at(name);
        if (tensor.dtype != dtype_of<Storage>()) throw std::runtime_error(name + " has dtype " + tensor.dtype);
        Matrix<T> result(1, tensor.shape.back());
        for (size_t axis = 0; axis + 1 < tensor.shape.size(); ++axis) result.rows *= tensor.shape[axis];
        result.values.resize(result.rows * result.columns);
        for (size_t k = 0; k < result.values.size(); ++k) {
            Storage stored;
            std::memcpy(&stored, tensor.bytes.data() + k * sizeof(Storage), sizeof(Storage));
            result.values[k] = T(stored);
        }
        return result;
    }
    Matrix<T> input(const std::string &name) const { return get("input." + name); }
    void put(const std::string &name, std::vector<size_t> shape, const Matrix<T> &value) {
        Tensor &tensor = answer.tensors[name];
        tensor.dtype = dtype_of<Storage>();
        tensor.shape = shape;
        tensor.bytes.resize(value.values.size() * sizeof(Storage));
        for (size_t i = 0, k = 0; i < value.rows; ++i)
            for (size_t j = 0; j < value.columns; ++j, ++k) {
                Storage stored(value.at(i, j));
                std::memcpy(tensor.bytes.data() + k * sizeof(Storage), &stored, sizeof(Storage));
            }
    }
    void output(const Matrix<T> &y) {
        std::vector<size_t> shape = request.tensors.at("input.x").shape;
        shape.back() = y.columns;
        put("output.y", shape, y);
    }
    void gradient(const std::string &name, const Matrix<T> &value) {
        if (wanted(name)) put("gradient." + name, request.tensors.at("input." + name).shape, value);
    }

    // Inverted dropout: z / keep where the mask holds, else zero; z itself where there is no mask.
    Matrix<T> dropout(Matrix<T> z) const {
        if (!has("mask")) return z;
        const std::vector<char> &mask = request.tensors.at("input.mask").bytes;
        const T keep = number("keep");
        for (size_t k = 0; k < mask.size(); ++k) z.values[k] = mask[k] ? z.values[k] / keep : T(0);
        return z;
    }

    // y = x W' + bias
    void linear_forward() {
        Matrix<T> y = input("x") * input("weight").t();
        output(has("bias") ? y + input("bias") : y);
    }
    void linear_vjp() {
        const Matrix<T> dy = get("cotangent.dy");
        if (wanted("x")) gradient("x", dy * input("weight"));
        if (wanted("weight")) gradient("weight", dy.t() * input("x"));
        if (wanted("bias")) gradient("bias", sum_of_rows(dy));
    }

    // y = x W' + bias + s (drop(x) A' B' + lora_bias)
    void lora_forward() {
        const T s = number("scaling");
        Matrix<T> y = input("x") * input("weight").t() + (s * (dropout(input("x")) * input("a").t())) * input("b").t();
        if (has("lora_bias")) y = y + s * input("lora_bias");
        output(has("bias") ? y + input("bias") : y);
    }
    // z = drop(x), h = z A', du = s dy, dh = du B: dx = dy W + drop(dh A), dW = dy' x, dA = dh' z, dB = du' h
    void lora_vjp() {
        const Matrix<T> dy = get("cotangent.dy"), x = input("x"), a = input("a"), z = dropout(x);
        const Matrix<T> du = number("scaling") * dy, dh = du * input("b");
        if (wanted("x")) gradient("x", dy * input("weight") + dropout(dh * a));
        if (wanted("weight")) gradient("weight", dy.t() * x);
        if (wanted("a")) gradient("a", dh.t() * z);
        if (wanted("b")) gradient("b", du.t() * (z * a.t()));
        if (wanted("bias")) gradient("bias", sum_of_rows(dy));
        if (wanted("lora_bias")) gradient("lora_bias", sum_of_rows(du));
    }

    bool run() {
        const std::string &operation = request.metadata.at("operation");
        const bool forward = request.metadata.at("request") == "forward";
        if (operation == "nn.linear") forward ? linear_forward() : linear_vjp();
        else if (operation == "lora.linear") forward ? lora_forward() : lora_vjp();
        else return false;
        return true;
    }
};

// ----------------------------------------------------------------------------------------------------- answers

bool compute(const Message &request, Message &answer) {
    const std::string &dtype = request.metadata.at("dtype");
    if (dtype == "float32") return Call<float, float>{request, answer}.run();
    if (dtype == "float64") return Call<double, double>{request, answer}.run();
    if (dtype == "bfloat16") return Call<bfloat16, float>{request, answer}.run();
    return false;
}

Message answer_to(const Message &request) {
    Message answer;
    answer.metadata = {{"protocol", "refpeft/1"}, {"status", "ok"}};
    try {
        if (request.metadata.at("protocol") != "refpeft/1") {
            answer.metadata["status"] = "unsupported";
            answer.metadata["message"] = "this program speaks refpeft/1";
        } else if (request.metadata.at("request") == "describe") {
            answer.metadata["name"] = "example-cpp";
            answer.metadata["version"] = "1.0";
            answer.metadata["operations"] = "nn.linear,lora.linear";
            answer.metadata["dtypes"] = "float32,float64,bfloat16";
            answer.metadata["deterministic"] = "true";
        } else if (!compute(request, answer)) {
            answer.metadata["status"] = "unsupported";
            answer.metadata["message"] = "this program has nn.linear and lora.linear in float32, float64 and bfloat16";
        }
    } catch (const std::exception &error) {
        answer.tensors.clear();
        answer.metadata["status"] = "error";
        answer.metadata["message"] = error.what();
    }
    return answer;
}

int main() {
    Message request;
    try {
        while (read_message(request)) write_message(answer_to(request));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "the request is malformed: %s\n", error.what());
        return 1;
    }
    return 0;
}
