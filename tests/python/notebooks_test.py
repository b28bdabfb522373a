"""The notebooks of docs/notebooks run from their first to their last cell.

They run on NIBBLENET_DATA's images if it is set, else on drawn noise with CIFAR-10's labels: whether the figures mean
anything does not matter here.
"""

import importlib.util
import os
import tempfile
import unittest
import unittest.mock
from pathlib import Path

from support import write_cifar10

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
MISSING = [name for name in ("ipykernel", "matplotlib", "nbclient") if importlib.util.find_spec(name) is None]


@unittest.skipIf(MISSING, f"{', '.join(MISSING)} not installed")
class Notebooks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        write_cifar10(Path(folder.name), test=20, train=200)
        values = {"NIBBLENET_DATA": folder.name, **os.environ, "NIBBLENET_LIMIT": "10", "JUPYTER_PLATFORM_DIRS": "1"}
        cls.enterClassContext(unittest.mock.patch.dict(os.environ, values))

    def read(self, name):
        import nbformat
        return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)

    def execute(self, name):
        """Returns the text that each code cell prints and shows."""
        import nbclient
        book = self.read(name)
        nbclient.NotebookClient(book, timeout=600, kernel_name="python3",
                                resources={"metadata": {"path": FOLDER}}).execute()
        return ["".join(output.get("text", "") + output.get("data", {}).get("text/html", "")
                        for output in cell.outputs if output.get("name") != "stderr")
                for cell in book.cells if cell.cell_type == "code"]

    def test_check(self):
        cells = self.execute("check")
        verdicts = [text for text in cells if "4 bits claimed" in text]
        self.assertEqual(["do not hold" in text for text in verdicts], [False, True, True])

    @unittest.skipUnless(os.environ.get("NIBBLENET_TOOLS"), "NIBBLENET_TOOLS does not name the folder of the tools")
    def test_finetune(self):
        self.assertIn("<table>", self.execute("finetune")[-1])

    def test_linear(self):
        cells = self.execute("linear")
        self.assertIn("simulated-linear-row", cells[1])
        self.assertIn("linear:8:tile:8x8", cells[3])

    def test_fp8(self):
        self.assertIn("table by channel", "".join(self.execute("fp8")))

    def test_dynamic_tree(self):
        table = self.execute("dynamic_tree")[1].splitlines()
        self.assertEqual(len(table), 1 + 8)
        needed = {line.split()[0]: int(line.split()[3]) for line in table[1:]}
        self.assertEqual(needed["dynamic-tree:4:row"], 8)
        self.assertGreater(needed["stable-embedding:8:sorted"], 8)

    def test_thirty_lines_make_the_main_table(self):
        cells = [cell.source for cell in self.read("dynamic_tree").cells if cell.cell_type == "code"][:2]
        self.assertIn("nibblenet.sweep", cells[1])
        self.assertLessEqual(sum(len(cell.splitlines()) for cell in cells), 30)

    def test_stable_embedding(self):
        self.assertIn("block_ids", "".join(self.execute("stable_embedding")))


if __name__ == "__main__":
    unittest.main()
