"""nibblenet.check against counts by NumPy."""

import unittest

import numpy as np

import nibblenet
from support import fake_quantized, state_dict


class Check(unittest.TestCase):
    def test_values_and_tables_are_those_that_numpy_counts(self):
        weights = np.random.default_rng(5).integers(0, 7, (6, 4, 3, 5)).astype(np.float32)
        row = nibblenet.check(weights).rows[0]
        for kind, groups in {"tensor": weights.reshape(1, -1), "channel": weights.reshape(6, -1),
                             "row": weights.reshape(-1, 5)}.items():
            counts = [len(np.unique(group)) for group in groups]
            size = sum(group.size * int(np.ceil(np.log2(count))) / 8 + 4 * count
                       for group, count in zip(groups, counts))
            self.assertEqual(row[kind]["values"], max(counts), kind)
            self.assertEqual(row[kind]["groups"], len(groups), kind)
            self.assertAlmostEqual(row[kind]["bytes"], size, msg=kind)

    def test_five_lines_give_the_ledger_of_a_fake_quantized_state_dict(self):
        honest = {name: fake_quantized(values, 4) if values.ndim > 1 else values
                  for name, values in state_dict().items()}
        report = nibblenet.check(honest, claimed_bits=4)
        self.assertEqual(len(report.rows), 8)
        self.assertTrue(report.holds)
        for row in report.rows:
            self.assertEqual(row["scheme"].split(":")[:2], ["linear", "4"], row["name"])
        self.assertLess(report.bytes, 1.3 * report.claimed_bytes)
        self.assertIn("the values hold that", str(report))
        self.assertIn("<table>", report._repr_html_())

    def test_the_named_scheme_gives_the_values(self):
        name = "classifier.1.weight"
        parameters = state_dict()
        parameters[name] = fake_quantized(parameters[name], 5)
        scheme = nibblenet.check(parameters[name]).rows[0]["scheme"]
        packed = nibblenet.pack(parameters, layers={"*": "linear:8:channel", "classifier.1": scheme})
        # To the last place: pack takes scales of the extremes, check tries their neighbours, too.
        np.testing.assert_allclose(packed.dequantize()[name], parameters[name], rtol=3e-7)

    def test_a_claim_that_does_not_hold_is_told(self):
        # 4 bits a row, each row by its own steps of 8 bits: what a notebook may call 4 bits.
        weights = fake_quantized(state_dict()["classifier.1.weight"], 8)
        report = nibblenet.check(weights, claimed_bits=4)
        self.assertFalse(report.holds)
        self.assertGreater(report.bits_per_weight, 8)
        self.assertIn("do not hold", str(report))

    def test_progress_is_heard_and_stops_it(self):
        weights, heard = np.random.default_rng(1).standard_normal((3000, 2000)).astype(np.float32), []
        nibblenet.check({"w": weights}, progress=lambda *args: heard.append(args))
        for label, unit, done, total in heard:
            self.assertEqual((label, unit, total), ("checking w", "weights", weights.size))
            self.assertLessEqual(done, total)

        def stop(*_):
            raise LookupError("enough")

        with self.assertRaisesRegex(LookupError, "enough"):
            nibblenet.check(np.tile(weights, (4, 1)), progress=stop)

    def test_floats_take_float32(self):
        report = nibblenet.check(state_dict()["classifier.1.weight"])
        self.assertEqual(report.rows[0]["stored_as"], "float32")
        self.assertEqual(report.bits_per_weight, 32)
        self.assertIsNone(report.holds)

    def test_shapes_of_any_rank_and_order_count_the_same(self):
        weights = fake_quantized(np.random.default_rng(1).standard_normal((4, 6, 5)).astype(np.float32), 3)
        counted = nibblenet.check(weights).rows[0]
        for other in (np.asfortranarray(weights), weights.reshape(4, 1, 6, 5), weights.reshape(4, 2, 3, 1, 5),
                      np.repeat(weights, 2, axis=0)[::2]):
            self.assertEqual(nibblenet.check(other).rows[0]["row"], counted["row"])
        self.assertEqual(nibblenet.check(weights.astype(np.float16)).rows[0]["weights"], 120)
        self.assertEqual(nibblenet.check(np.array([1, 2, 2], np.float32)).rows[0]["tensor"]["values"], 2)


if __name__ == "__main__":
    unittest.main()
