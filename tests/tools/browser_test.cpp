#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "tests/tools/run.h"

// A sweep's report in a real browser: Debian's headless Chromium. Skipped where there is none.

namespace nibblenet::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

/// What a page is like in a frame of `width` pixels.
struct Shown {
  int width = 0;
  int scroll_width = 0;  ///< more than `width`: it has to be scrolled sideways
  int requests = 0;      ///< of whatever it loads
  std::string dark;      ///< "true" or "false": what it was told that its reader prefers
  int paper = 0;         ///< brightness of background and text, 0 to 765
  int ink = 0;
  int collisions = 0;  ///< texts of plots that touch each other or reach out of their plot
  std::string first_collision;
};

/// Loads report.html twice and a page that does all of it wrong, and says how they are shown.
constexpr const char* observer = R"html(<!DOCTYPE html>
<body>
<iframe width="390" height="800" src="out/report.html"></iframe>
<iframe width="1280" height="800" src="out/report.html"></iframe>
<iframe width="390" height="800" src="wrong.html"></iframe>
<pre></pre>
<script>
const brightness = colour => colour.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
function collisions(page) {
  const found = [];
  for (const plot of page.querySelectorAll('svg')) {
    const frame = plot.getBoundingClientRect(), texts = [];
    for (const text of plot.querySelectorAll('text')) {
      const turned = /rotate\(-?(?!-?(90|270|0)\b)/.test(text.parentNode.getAttribute('transform') || '');
      if (!text.textContent.trim() || text.closest('[id*=gnuplot_plot_]')) continue;  // beside points, as these lie
      const at = text.getBoundingClientRect();
      if (at.left < frame.left - 1 || at.right > frame.right + 1 || at.top < frame.top - 1 || at.bottom > frame.bottom + 1)
        found.push(text.textContent.trim() + ' is cut off');
      for (const [other, there] of turned ? [] : texts)
        if (Math.min(at.right, there.right) - Math.max(at.left, there.left) > 1 &&
            Math.min(at.bottom, there.bottom) - Math.max(at.top, there.top) > 4)
          found.push(text.textContent.trim() + ' over ' + other.textContent.trim());
      if (!turned) texts.push([text, at]);
    }
  }
  return found;
}
onload = () => {
  for (const frame of document.querySelectorAll('iframe')) {
    const inside = frame.contentWindow, page = inside.document, body = inside.getComputedStyle(page.body);
    const found = collisions(page);
    document.querySelector('pre').textContent += [
      'shown', frame.width, page.documentElement.scrollWidth, inside.performance.getEntriesByType('resource').length,
      inside.matchMedia('(prefers-color-scheme: dark)').matches, brightness(body.backgroundColor), brightness(body.color),
      found.length, found.length ? found[0].replace(/\s+/g, '_') : '-'].join(' ') + '\n';
  }
};
</script>
</body>
)html";

constexpr const char* wrong = R"html(<!DOCTYPE html>
<body style="background:#123; color:#456"><p style="width:2000px">wide</p><img src="http://127.0.0.1:9/picture.png">
<svg width="100" height="100"><g><text y="50">one</text></g><g><text y="50">two</text></g></svg></body>
)html";

class Browser : public ToolsTest {
 protected:
  /// What the observer says, with light or dark colours preferred; empty without a browser.
  std::vector<Shown> shown(bool dark) const {
    const std::string command = fmt::format(
        "command -v chromium >/dev/null || exit 77; HOME=$PWD exec timeout 240 chromium --headless --no-sandbox "
        "--hide-scrollbars --disable-gpu --disable-dev-shm-usage --user-data-dir=$PWD/profile "
        "--allow-file-access-from-files "
        "--blink-settings=preferredColorScheme={} --dump-dom file://$PWD/observer.html",
        dark ? 0 : 1);
    const Outcome outcome = Child({"/bin/bash", "-c", command}, at(""), {}, at(".browser").string()).wait();
    std::vector<Shown> pages;
    if (outcome.code == 77) return pages;
    EXPECT_EQ(outcome.code, 0) << outcome;
    std::istringstream words(outcome.out);
    for (std::string word; words >> word;) {
      if (!word.ends_with("shown")) continue;
      Shown page;
      words >> page.width >> page.scroll_width >> page.requests >> page.dark >> page.paper >> page.ink >>
          page.collisions >> page.first_collision;
      pages.push_back(page);
    }
    EXPECT_EQ(pages.size(), 3U) << outcome;
    return pages;
  }
};

TEST_F(Browser, ShowsReportsWithoutOverflowOrNetworkInBothColours) {
  const std::string long_name = "a_name_" + std::string(100, 'x') + "_of_a_model";
  fs::create_directory(at("a_folder"));
  fs::copy_file(at("small.safetensors"), at("a_folder") / (long_name + ".safetensors"));
  succeed("pack small.safetensors --bits 3 -o " + long_name + "_3bit.safetensors");
  succeed(fmt::format(
      "sweep {}/{}.safetensors --data {} --threads 1 --limit 50 --out out --preset full --models {}_3bit.safetensors "
      "--schemes \"pack --bits 4 --layer classifier.1=linear:3:block:16:f16:zero-point --layer features.*=kmeans:4\"",
      at("a_folder").string(), long_name, at("standin").string(), long_name));
  for (const char* name : {"report.md", "report.html", "report.csv", "report.json"})
    EXPECT_THAT(read_text(at("out") / name), Not(HasSubstr(at("").parent_path().string()))) << name;
  EXPECT_THAT(read_text(at("out/report.md")), HasSubstr(long_name + ".safetensors ("));
  EXPECT_EQ(json("out/report.json").at("setup").at("data"), "standin");

  write_text(at("observer.html"), observer);
  write_text(at("wrong.html"), wrong);
  for (const bool dark : {false, true}) {
    const std::vector<Shown> pages = shown(dark);
    if (pages.empty()) GTEST_SKIP() << "there is no chromium here";
    ASSERT_EQ(pages.size(), 3U);
    for (size_t i = 0; i < 2; ++i) {
      SCOPED_TRACE(fmt::format("{} pixels, {}", pages[i].width, dark ? "dark" : "light"));
      EXPECT_EQ(pages[i].scroll_width, pages[i].width);
      EXPECT_EQ(pages[i].requests, 0);
      EXPECT_EQ(pages[i].dark, dark ? "true" : "false");
      EXPECT_GT(dark ? pages[i].ink : pages[i].paper, 600);
      EXPECT_LT(dark ? pages[i].paper : pages[i].ink, 165);
      EXPECT_EQ(pages[i].collisions, 0) << pages[i].first_collision;
    }
    EXPECT_GT(pages[2].scroll_width, 2000) << "the observer sees what is wide";
    EXPECT_EQ(pages[2].requests, 1) << "and what is loaded";
    EXPECT_GE(pages[2].collisions, 1) << "and what collides";
  }
}

}  // namespace
}  // namespace nibblenet::testing
