// Which tokens of a call are computed, and whether the pages that they name are there.
#pragma once

#include <cstdint>
#include <string>

#include "call_frame.h"
#include "calls.h"

namespace penstock {

// Finds the live tokens of a call; with attention, each must name a row and pages that are there.
class TokenCheck {
 public:
  // num_pages: of each group, 0 where no block reads any.
  TokenCheck(BlocksCall& call, const int64_t* num_pages) : call_(call), num_pages_(num_pages) {}

  void run() {
    for (int64_t token = 0; token < call_.num_tokens; token++) {
      const int64_t position = call_.positions[token];
      if (position < 0) continue;
      if (call_.block_size > 0) check_pages(token, position);
      call_.live.push_back(static_cast<int32_t>(token));
    }
  }

 private:
  void check_pages(int64_t token, int64_t position) {
    const int64_t row = call_.rows[token], last = position / call_.block_size;
    if (row < 0 || row >= call_.num_rows || last >= call_.table_width) {
      throw BadCall("token " + std::to_string(token) + " at position " +
                    std::to_string(position) + " of row " + std::to_string(row) +
                    " is outside of the block tables [" + std::to_string(call_.num_rows) + ", " +
                    std::to_string(call_.table_width) + "]");
    }
    // The pages of a row are looked at once, as far as its furthest token so far.
    if (row != checked_row_) checked_pages_ = 0;
    checked_row_ = row;
    for (; checked_pages_ <= last; checked_pages_++) {
      for (int64_t group = 0; group < call_.num_groups; group++) {
        if (num_pages_[group] == 0) continue;  // Nothing here reads its pages.
        const int64_t page =
            call_.block_tables[(group * call_.num_rows + row) * call_.table_width + checked_pages_];
        if (page < 0 || page >= num_pages_[group]) {
          throw BadCall("block " + std::to_string(page) + " of row " + std::to_string(row) +
                        " is outside of the cache's " + std::to_string(num_pages_[group]));
        }
      }
    }
  }

  BlocksCall& call_;
  const int64_t* num_pages_;
  int64_t checked_row_ = -1, checked_pages_ = 0;
};

}  // namespace penstock
