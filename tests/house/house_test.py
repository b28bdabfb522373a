"""The checks of this folder find what they look for, and nothing else.

usage: house_test.py
"""

import json
import unittest

from commands import options_of_tools, wrong_dev_table, wrong_words
from headers import without_a_comment
from includes import wrong_includes
from links import broken_links
from notebooks import wrong_notebook
from places import wrong_output, wrong_places
from words import words_of
from wrap import long_lines

HEADER = """#pragma once
#include "a.h"

namespace a {

/// Two neighbours share this.
int one(int x);
int two(int x);

int three(int x = f({1, 2}));
struct Four {
  int field = 3;
  void five() {
    if (true) return;
  }
  /// Here.
  void six();

  int seven() const { return field; }
  void eight() override;
  Four(Four&& other) noexcept { swap(other); }
};
class Forward;
class Nine : public Four {  // says what it is
 public:
  explicit Nine(int x) : x_{x} {}
  virtual void ten() = 0;

 private:
  void hidden();
};
inline constexpr size_t eleven = size_t{3} * 4;
namespace {
int nameless();
}
template <class T>
void twelve(T x) { x(); }

}  // namespace a
"""


def lines(findings):
    return [number for number, _ in findings]


class House(unittest.TestCase):
    def test_headers(self):
        names = ["three", "Four", "five", "ten", "eleven", "twelve"]
        found = list(without_a_comment(HEADER))
        self.assertEqual(len(found), len(names), found)
        for (number, what), name in zip(found, names):
            self.assertIn(name, what)
            self.assertIn(name if name != "twelve" else "template", HEADER.splitlines()[number - 1])

    def test_wrap(self):
        prose = "word " * 30
        document = f"{prose}\n| {prose}|\n```\n{prose}\n```\n- {prose}\nhttps://a.example/{'a' * 120}\n"
        self.assertEqual(lines(long_lines("a.md", document)), [1, 6])
        code = f"// {prose}\nint x;  // {prose}\nf(\"{prose}\");\n  /// {prose}\n//  ┌──┐ {prose}\n"
        self.assertEqual(lines(long_lines("a.cpp", code)), [1, 4])
        self.assertEqual(lines(long_lines("tools/dev", f"#!{prose}\n# {prose}\necho {prose}\n")), [2])

    def test_words(self):
        text = "a skinny matrix\nthe baseline\nThe seed's notebooks\n--seed 1\n--units a=1\nmetadata rounding=compensated\n"
        self.assertEqual(lines(words_of("a.md", text)), [1, 3, 5])
        self.assertEqual(lines(words_of("tools/common/aliases.cpp", text)), [])

    def test_notebooks(self):
        def wrong(change=lambda _: None, form=lambda text: text):
            notebook = {"cells": [{"cell_type": "markdown", "source": ["# A title\n", "See [b](../python.md)."]},
                                  {"cell_type": "code", "execution_count": None, "outputs": [], "source": ["x = 1"]}]}
            change(notebook["cells"])
            return lines(wrong_notebook("docs/notebooks/a.ipynb", form(json.dumps(notebook, indent=1, sort_keys=True) + "\n")))
        self.assertEqual(wrong(), [])
        self.assertEqual(wrong(lambda cells: cells[1].update(outputs=[{"output_type": "stream"}])), [2])
        self.assertEqual(wrong(lambda cells: cells[1].update(execution_count=3)), [2])
        self.assertEqual(wrong(lambda cells: cells[1].update(source=["x = 1  # " + "long " * 30])), [2])
        self.assertEqual(wrong(lambda cells: cells[0].update(source=["[c](nowhere.md) a skinny matrix"])), [1, 1])
        self.assertEqual(wrong(lambda cells: cells[0].update(source=["word " * 30])), [1])
        self.assertEqual(wrong(form=lambda text: text.strip()), [1])
        self.assertEqual(wrong(form=lambda text: text[5:]), [1])

    def test_links(self):
        document = ("[a](README.md) [b](../README.md#start)\n[c](nowhere.md)\n[d](tools.md#nothing)\n"
                    "`engine/quant/scheme.h` `conv/few_pixels.cuh`\n`engine/quant/nothing.h`\nhttps://a.example/b.md\n")
        self.assertEqual(lines(broken_links("docs/a.md", document)), [2, 3, 5])
        code = "// see docs/formats.md\n// see docs/nothing.md\nopen(\"docs/nothing.md\");\n"
        self.assertEqual(lines(broken_links("engine/a.h", code)), [2])

    def test_includes(self):
        def wrong(path, included):
            return lines(wrong_includes(path, f'#pragma once\n#include "{included}"\n')) == [2]
        self.assertFalse(wrong("layers/linear.cpp", "kernels/backend.h"))
        self.assertFalse(wrong("layers/network/pass.h", "layers/linear.h"))
        self.assertFalse(wrong("kernels/cuda/conv/few_pixels.cu", "kernels/cuda/gemm/mma_fit.h"))
        self.assertFalse(wrong("kernels/cudnn/backend_cudnn.h", "kernels/cuda/backend_cuda.h"))
        self.assertFalse(wrong("tests/layers/linear_test.cpp", "tests/support/golden.h"))
        self.assertTrue(wrong("engine/io/loader.cpp", "layers/linear.h"))
        self.assertTrue(wrong("kernels/cuda/gemm/plain.cu", "kernels/cuda/conv/launchers.h"))
        self.assertTrue(wrong("kernels/cuda/conv/few_pixels.cu", "kernels/cuda/linear/launchers.h"))
        self.assertTrue(wrong("kernels/cuda/gemm/mma.cu", "kernels/cuda/routes.h"))
        self.assertTrue(wrong("kernels/cuda/routes.cpp", "kernels/cuda/backend_cuda.h"))
        self.assertTrue(wrong("kernels/backend.cpp", "tests/support/golden.h"))
        self.assertTrue(wrong("tests/kernels/cuda/gemm/mma_test.cpp", "kernels/cuda/gemm/mma.cuh"))
        self.assertTrue(wrong("kernels/cuda/routes.cpp", "kernels/cuda/gemm/mma.cuh"))
        self.assertFalse(wrong("tests/hostexec/device_test.cpp", "kernels/cuda/device/launch.cuh"))
        self.assertFalse(wrong("kernels/cuda/gemm/mma.cu", "kernels/cuda/gemm/mma.cuh"))
        self.assertFalse(wrong("training/trainer.h", "training/schedule.h"))
        self.assertFalse(wrong("training/trainer.h", "training/compression/pruning.h"))
        self.assertFalse(wrong("training/compression/adam.h", "layers/network/pass.h"))
        self.assertFalse(wrong("tools/study/recipe.h", "tools/training/packing.h"))
        self.assertTrue(wrong("training/compression/adam.h", "training/schedule.h"))
        self.assertTrue(wrong("layers/linear.h", "layers/network/pass.h"))
        self.assertTrue(wrong("tools/common/report.h", "tools/training/packing.h"))
        self.assertTrue(wrong("tools/timing/side.h", "tools/training/packing.h"))

    def test_commands(self):
        tools = options_of_tools("## Common options\n\n| `--json` | `FILE` | x |\n\n## eval\n\n| `--split` | `test\\|train` | x |\n"
                                 "| `--keep`, `--no-keep` | | x |\n\nCommon options: `--json`.\n")
        self.assertEqual(tools["eval"], {"--split": {"test", "train"}, "--keep": None, "--no-keep": None, "--json": None})
        document = ("tools/eval --nothing\n```sh\ntools/eval a --split train \\\n  --json x --no-keep\n"
                    "tools/eval --split both  # --nothing\nx() { tools/eval --limit 1; }\n```\n")
        self.assertEqual(lines(wrong_words(document, tools)), [5, 6])
        table = "## dev\n\n| `build` | x |\n| `fly [--far]` | x |\n\n## other\n\n| `walk` | x |\n"
        self.assertEqual(lines(wrong_dev_table(table, "usage: tools/dev COMMAND\n\n  build   x\n  new K   x\n  help    x\n")), [1, 4])

    def test_places(self):
        entries = ("1. `layers/network/<name>.cpp`: the table\n2. `layers/network/networks.cpp`: a place in\n   `networks`\n"
                   "3. `README.md`: a row\n")
        self.assertEqual(lines(wrong_places("### network: a thing\n\n2 sources. Example: `vgg16`.\n\n" + entries)), [])
        self.assertEqual(lines(wrong_places("### network: a thing\n\n3 sources. Example: `vgg16`.\n\n" + entries)), [1])
        self.assertEqual(lines(wrong_places("### network: a thing\n\n2 sources. Example: `vgg17`.\n\n" + entries)), [5])
        self.assertEqual(lines(wrong_places("### a: b\n\n1 source.\n\n1. `layers/linear.{h,cc}`: `linear_forward`\n"
                                            "2. `layers/linear.h`: `relu`\n")), [5, 6, 1])
        self.assertEqual(lines(wrong_output("### network: a thing\n\n2 sources.\n\n" + entries)), [1])


if __name__ == "__main__":
    unittest.main()
