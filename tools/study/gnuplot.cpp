#include "tools/study/gnuplot.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <fstream>
#include <iterator>

#include "tools/study/folder.h"

extern char** environ;

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

/// One plot for two terminals: SVG for the page, PNG at twice the size for readers that cannot show
/// SVG.
std::string script_of(const Plot& plot) {
  const auto terminal = [&](std::string_view options, std::string_view ending) {
    return fmt::format("reset\nset terminal {}\nset output '{}.{}'\n{}unset output\n", options, plot.name, ending,
                       plot.commands);
  };
  return "# Made by tools/sweep. To draw it again: gnuplot -d " + plot.name + ".gp\n" +
         terminal(
             fmt::format("svg size {},{} dynamic font 'sans-serif,14' background 'white'", plot.width, plot.height),
             "svg") +
         terminal(
             fmt::format("pngcairo size {},{} font 'sans,11' fontscale 2 linewidth 2 pointscale 2 background 'white'",
                         2 * plot.width, 2 * plot.height),
             "png");
}

/// gnuplot's exit code, or nothing when there is no gnuplot.
std::optional<int> run_gnuplot(const fs::path& folder, const std::string& script) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, "gnuplot.log", O_WRONLY | O_CREAT | O_TRUNC, 0666);
  std::array<std::string, 3> words = {"gnuplot", "-d", script};  // -d: nobody's settings but ours
  std::array<char*, 4> arguments = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  pid_t process = 0;
  // Our threads block signals and ignore some; gnuplot should not.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, ignored;
  sigemptyset(&none);
  sigemptyset(&ignored);
  sigaddset(&ignored, SIGPIPE);
  sigaddset(&ignored, SIGXFSZ);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &ignored);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const int error = posix_spawnp(&process, "gnuplot", &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return std::nullopt;
  int status = 0;
  while (waitpid(process, &status, 0) < 0)
    if (errno != EINTR) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

}  // namespace

std::string inline_svg(std::string svg, const std::string& name) {
  const size_t begin = svg.find("<svg");
  if (begin == std::string::npos) return {};
  svg.erase(0, begin);
  const size_t background = svg.find("<rect x=\"0\" y=\"0\"");  // the page has its own
  if (background != std::string::npos) svg.erase(background, svg.find("/>", background) + 2 - background);
  for (const std::string id : {"gnuplot_canvas", "gpPt", "gpDot", "textbox", "greybox", "gnuplot_plot_"})
    replace_all(svg, id, fmt::format("{}_{}", name, id));
  for (const char quote : {'\'', '"'})
    for (const std::string attribute : {"color", "stroke", "fill"})
      replace_all(svg, fmt::format("{}={}black{}", attribute, quote, quote),
                  fmt::format("{}={}{}{}", attribute, quote, attribute == "color" ? "inherit" : "currentColor", quote));
  return svg;
}

DrawnPlots draw(const std::vector<Plot>& plots, const fs::path& folder) {
  DrawnPlots result;
  std::error_code error;
  fs::create_directories(folder, error);
  if (!fs::is_directory(folder)) fail_io("create the folder", folder, error ? error.value() : ENOTDIR);
  for (const Plot& plot : plots) {
    const std::string script = plot.name + ".gp";
    write_text_file(folder / script, script_of(plot));
    const std::optional<int> code = run_gnuplot(folder, script);
    if (!code) {
      result.problem =
          "no plots: gnuplot is not installed (Debian: gnuplot-nox); install it and run the same command again";
      return {{}, result.problem};
    }
    std::ifstream file(folder / (plot.name + ".svg"), std::ios::binary);
    const std::string svg{std::istreambuf_iterator<char>(file), {}};
    if (*code == 0 && svg.find("</svg>") != std::string::npos)
      result.figures[plot.name] = {plot.caption, inline_svg(svg, plot.name)};
    else
      result.problem =
          fmt::format("plot {} failed: gnuplot's words are in {}", plot.name, (folder / "gnuplot.log").string());
  }
  return result;
}

}  // namespace nibblenet::tools
