#pragma once

namespace nibblenet::tools {

/// Makes SIGINT (Ctrl-C), SIGTERM and SIGHUP ask the program to stop. Another SIGINT or SIGTERM,
/// more than a tenth of a second later, ends it at once; a terminal is told so. Call this before
/// any thread starts: one thread receives the signals, all others inherit a mask that blocks them.
void catch_interrupts();
/// Sets or clears the wish to stop, for a program that takes signals by other means.
void ask_to_stop(bool stop);
/// Whether to stop: a signal asked for it, or the reader of the standard output is gone.
bool interrupted();

}  // namespace nibblenet::tools
