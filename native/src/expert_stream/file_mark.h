// By what a file that is written to is told from the same file before. Knows no experts.
#pragma once

#include <cstdint>
#include <tuple>

namespace lme::stream {

// A file's size and time of change, in seconds and nanoseconds.
using FileMark = std::tuple<int64_t, int64_t, int64_t>;

// Of an open file; of a descriptor that is none, a mark that no file has.
FileMark file_mark(int32_t fd);

}  // namespace lme::stream
