#pragma once

#include <string_view>

namespace nibblenet::tools {

/// Makes stdout and stderr streams on which every write succeeds: a full disk or a reader that is
/// gone costs text, never work. Flushes stdout before each text on stderr, so a log of both is in
/// order. Ignores the signals of writing (SIGPIPE, SIGXFSZ). Call it first in main.
void guard_standard_streams();

/// The errno of the first write to the standard output that failed; 0 while there is none.
int standard_output_error();
/// Likewise for the standard error. Progress lines do not count.
int standard_error_error();

/// Writes a line of progress to the standard error, after the text that stdout holds. A failure is
/// ignored.
void write_progress(std::string_view text);

}  // namespace nibblenet::tools
