// What reserves the arrays of a cache.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "driver.h"

extern "C" XLA_FFI_Error* penstock_unwritten(XLA_FFI_CallFrame*);

// What lies in whole pages of an array stays as it is, all else is zero.
inline void test_unwritten() {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (auto type : {XLA_FFI_DataType_S8, XLA_FFI_DataType_U16, XLA_FFI_DataType_F32}) {
    for (int64_t size : {0, 1, 33, 5000, 20000}) {
      Array array(type, {size});
      char* data = array.at<char>();
      std::memset(data, 7, array.bytes());
      Call call;
      call.results = {array.buffer()};
      const std::string error = call.run(penstock_unwritten);
      expect(error.empty(), "an unwritten array: " + error);
      const auto start = reinterpret_cast<uintptr_t>(data), end = start + array.bytes();
      const uintptr_t first = (start + page - 1) / page * page, last = end / page * page;
      bool is_right = true;
      for (uintptr_t at = start; at < end; at++) {
        is_right = is_right && data[at - start] == (at >= first && at < last ? 7 : 0);
      }
      expect(is_right, "an unwritten array of " + std::to_string(array.bytes()) + " bytes");
    }
  }
}
