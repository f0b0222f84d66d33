// Reads XLA's call frames (the plain C interface of xla_ffi_c_api.h) with every bound checked.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "xla_ffi_c_api.h"

namespace penstock {

// What is wrong with a call: becomes the error of the XLA program.
class BadCall : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int64_t kAny = -1;

class CallFrame {
 public:
  explicit CallFrame(const XLA_FFI_CallFrame& frame) : frame_(frame) {}

  // An argument by its place, with its type, shape (kAny: whatever it has) and alignment.
  const XLA_FFI_Buffer& argument(int64_t index, const char* name, XLA_FFI_DataType type,
                                 std::initializer_list<int64_t> shape, uintptr_t alignment) const {
    if (index >= frame_.args.size || frame_.args.types[index] != XLA_FFI_ArgType_BUFFER) {
      throw BadCall(std::string("argument ") + name + " is missing");
    }
    return checked(frame_.args.args[index], name, type, shape, alignment);
  }

  const XLA_FFI_Buffer& result(int64_t index, const char* name, XLA_FFI_DataType type,
                               std::initializer_list<int64_t> shape, uintptr_t alignment) const {
    return checked(result_at(index, name), name, type, shape, alignment);
  }

  // A result of any type and shape.
  const XLA_FFI_Buffer& any_result(int64_t index, const char* name) const {
    return *static_cast<const XLA_FFI_Buffer*>(result_at(index, name));
  }

  // The result that is to be the argument, updated in place.
  void aliased_result(int64_t index, const char* name, const XLA_FFI_Buffer& argument) const {
    const XLA_FFI_Buffer& buffer = any_result(index, name);
    if (buffer.data != argument.data || size_of(buffer) != size_of(argument)) {
      throw BadCall(std::string(name) +
                    " is not updated in place: alias it with input_output_aliases");
    }
  }

  void expect_arguments(int64_t count) const {
    if (frame_.args.size != count) {
      throw BadCall("the call has " + std::to_string(frame_.args.size) + " arguments, not " +
                    std::to_string(count));
    }
  }

  // An array attribute: its values and their number.
  template <class T>
  const T* array(const char* name, XLA_FFI_DataType type, int64_t* count) const {
    const int64_t index = find(name);
    if (frame_.attrs.types[index] != XLA_FFI_AttrType_ARRAY) {
      throw BadCall(std::string("attribute ") + name + " is no array");
    }
    const auto* array = static_cast<const XLA_FFI_Array*>(frame_.attrs.attrs[index]);
    if (array->dtype != type) throw BadCall(std::string("attribute ") + name + " has another type");
    *count = static_cast<int64_t>(array->size);
    return static_cast<const T*>(array->data);
  }

  static int64_t size_of(const XLA_FFI_Buffer& buffer) {
    int64_t size = 1;
    for (int64_t i = 0; i < buffer.rank; i++) size *= buffer.dims[i];
    return size;
  }

 private:
  void* result_at(int64_t index, const char* name) const {
    if (index >= frame_.rets.size || frame_.rets.types[index] != XLA_FFI_RetType_BUFFER) {
      throw BadCall(std::string("result ") + name + " is missing");
    }
    return frame_.rets.rets[index];
  }

  static const XLA_FFI_Buffer& checked(void* opaque, const char* name, XLA_FFI_DataType type,
                                       std::initializer_list<int64_t> shape, uintptr_t alignment) {
    const auto& buffer = *static_cast<const XLA_FFI_Buffer*>(opaque);
    bool fits = buffer.dtype == type && buffer.rank == static_cast<int64_t>(shape.size());
    int64_t axis = 0;
    for (int64_t size : shape) {
      fits = fits && (size == kAny || buffer.dims[axis] == size);
      axis++;
    }
    if (!fits) {
      throw BadCall(std::string(name) + " is " + describe(buffer.dtype, buffer.dims, buffer.rank) +
                    ", not " + describe(type, shape.begin(), static_cast<int64_t>(shape.size())));
    }
    if (reinterpret_cast<uintptr_t>(buffer.data) % alignment != 0 ||
        (buffer.data == nullptr && size_of(buffer) > 0)) {
      throw BadCall(std::string(name) + " is not aligned to " + std::to_string(alignment) +
                    " bytes");
    }
    return buffer;
  }

  static std::string describe(XLA_FFI_DataType type, const int64_t* dims, int64_t rank) {
    std::string text = "type " + std::to_string(static_cast<int>(type)) + " [";
    for (int64_t i = 0; i < rank; i++) {
      text += (i > 0 ? ", " : "") + (dims[i] == kAny ? std::string("*") : std::to_string(dims[i]));
    }
    return text + "]";
  }

  int64_t find(const char* name) const {
    const std::string wanted(name);
    for (int64_t i = 0; i < frame_.attrs.size; i++) {
      const XLA_FFI_ByteSpan& span = *frame_.attrs.names[i];
      if (wanted == std::string(span.ptr, span.len)) return i;
    }
    throw BadCall("attribute " + wanted + " is missing");
  }

  const XLA_FFI_CallFrame& frame_;
};

}  // namespace penstock
