#pragma once

#include <string_view>

namespace nibblenet::tools {

/// Replaces stdout and stderr by streams on which every write succeeds: a full disk or a closed
/// pipe loses text, but stops no work. Text on stderr first flushes stdout, so a log of both is in
/// order. Ignores SIGPIPE and SIGXFSZ. run_tool() calls it first.
void guard_standard_streams();

/// The errno of the first write to the standard output that failed; 0 if none has.
int standard_output_error();
/// The errno of the first write to the standard error that failed, progress lines aside; 0 if none
/// has.
int standard_error_error();

/// Flushes stdout, then writes a progress line to the standard error. Ignores failures.
void write_progress(std::string_view text);

}  // namespace nibblenet::tools
