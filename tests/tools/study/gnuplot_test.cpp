#include "tools/study/gnuplot.h"

#include <gtest/gtest.h>

namespace nibblenet::tools {
namespace {

TEST(Gnuplot, AnInlinedPlotTakesThePagesInkAndHasIdsOfItsOwn) {
  const std::string svg =
      "<?xml version=\"1.0\"?>\n<svg viewBox=\"0 0 8 8\"><g id=\"gnuplot_canvas\">"
      "<rect x=\"0\" y=\"0\" width=\"8\" height=\"8\" fill=\"#ffffff\"/><path id='gpPt1' stroke='black'/>"
      "<use xlink:href='#gpPt1'/><g color=\"black\" fill=\"black\" stroke=\"rgb(1, 2, 3)\"/></g></svg>\n";
  EXPECT_EQ(
      inline_svg(svg, "a"),
      "<svg viewBox=\"0 0 8 8\"><g id=\"a_gnuplot_canvas\"><path id='a_gpPt1' stroke='currentColor'/>"
      "<use xlink:href='#a_gpPt1'/><g color=\"inherit\" fill=\"currentColor\" stroke=\"rgb(1, 2, 3)\"/></g></svg>\n");
  EXPECT_EQ(inline_svg("no picture", "a"), "");
}

}  // namespace
}  // namespace nibblenet::tools
