#pragma once

namespace nibblenet::tools {

/// Ctrl-C (SIGINT), SIGTERM and SIGHUP ask to stop from here on; another SIGINT or SIGTERM, more
/// than a tenth of a second later, ends the program at once. Call before any thread starts: one
/// thread takes the signals, and threads inherit that all others block them.
void catch_interrupts();
/// Whether to stop: a signal asked for it, or the reader of the standard output is gone.
bool interrupted();

}  // namespace nibblenet::tools
