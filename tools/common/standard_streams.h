#pragma once

#include <string_view>

namespace nibblenet::tools {

/// Makes stdout and stderr streams on which every write succeeds: a full disk or a reader that went
/// away costs the text, never the work. Before each text on stderr, stdout is flushed, so that a log
/// of both is in order. Signals of writing (SIGPIPE, SIGXFSZ) are ignored. Call first in main.
void guard_standard_streams();

/// The errno of the first write to the standard output that failed; 0 while there is none.
int standard_output_error();
/// The same of the standard error. Progress lines do not count.
int standard_error_error();

/// Writes a line of progress to the standard error, behind what stdout holds; whether it arrives
/// does not matter.
void write_progress(std::string_view text);

}  // namespace nibblenet::tools
