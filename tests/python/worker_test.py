"""Threads, Ctrl-C, forks and the interpreter's end."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import nibblenet
from support import pictures, prepared, state_dict, wrong_in_threads


def run(code, **options):
    """Runs a script that has what the tests have."""
    text = "from support import *\nimport numpy as np\nimport nibblenet, os, signal, sys, threading, time\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parent, capture_output=True, text=True,
                          timeout=120, **options)


class Worker(unittest.TestCase):
    def test_threads_share_a_model(self):
        model = nibblenet.pack(state_dict(), bits=4)
        images = [prepared(2, seed=seed) for seed in range(4)]
        expected = [model(each) for each in images]
        self.assertEqual(wrong_in_threads(model, images, expected), [])

    def test_other_threads_run_while_a_model_computes(self):
        model = nibblenet.pack(state_dict(), bits=4)
        images = prepared(512)
        ticks, stop = [], threading.Event()

        def tick():
            while not stop.is_set():
                ticks.append(time.monotonic())
                time.sleep(0.001)

        thread = threading.Thread(target=tick)
        thread.start()
        start = time.monotonic()
        model(images)
        end = time.monotonic()
        stop.set()
        thread.join()
        during = [each for each in ticks if start < each < end]
        self.assertGreater(len(during), (end - start) / 0.2)

    def test_progress_is_heard_and_its_error_stops_the_work(self):
        model = nibblenet.pack(state_dict(), bits=4)
        heard = []
        nibblenet.evaluate(model, (pictures(64), np.zeros(64, int)), batch=1, progress=lambda *args: heard.append(args))
        self.assertTrue(heard)
        for label, unit, done, total in heard:
            self.assertEqual((label, unit, total), ("evaluating", "images", 64))
            self.assertLessEqual(done, total)

        def stop(*_):
            raise LookupError("enough")

        with self.assertRaisesRegex(LookupError, "enough"):
            nibblenet.evaluate(model, (pictures(2000), np.zeros(2000, int)), batch=1, progress=stop)
        self.assertEqual(model(prepared(1)).shape, (1, 10))

    def test_a_call_inside_progress_waits_for_the_work(self):
        model = nibblenet.pack(state_dict(), bits=4)
        shapes = []
        nibblenet.evaluate(model, (pictures(64), np.zeros(64, int)), batch=1,
                           progress=lambda *_: shapes.append(model(prepared(1)).shape))
        self.assertEqual(set(shapes), {(1, 10)})

    def test_control_c_stops_a_long_call(self):
        done = run("""
            signal.signal(signal.SIGINT, signal.default_int_handler)
            model = nibblenet.pack(state_dict(), bits=4)
            data = (pictures(20000), np.zeros(20000, int))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                nibblenet.evaluate(model, data, batch=4, progress=False)
            except KeyboardInterrupt:
                print("stopped", time.monotonic() - start < 10, model(prepared(1)).shape)
        """)
        self.assertEqual(done.stdout, "stopped True (1, 10)\n", done.stderr)

    def test_a_forked_child_is_told(self):
        done = run("""
            model = nibblenet.pack(state_dict(), bits=4)
            child = os.fork()
            if child == 0:
                try:
                    model(prepared(1))
                except nibblenet.Error as error:
                    print("spawn" in str(error), flush=True)
                sys.exit(3)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model(prepared(1)).shape)
        """)
        self.assertEqual(done.stdout, "True\n3 (1, 10)\n", done.stderr)

    def test_the_interpreter_may_end_during_work(self):
        done = run("""
            model = nibblenet.pack(state_dict(), bits=4)
            data = (pictures(20000), np.zeros(20000, int))
            for _ in range(3):
                threading.Thread(target=nibblenet.evaluate, args=(model, data), kwargs={"batch": 4}, daemon=True).start()
            time.sleep(0.5)
            print("end", flush=True)
        """)
        self.assertEqual((done.returncode, done.stdout), (0, "end\n"), done.stderr)

    def test_threads_of_short_calls_may_end_with_the_interpreter(self):
        for threads in ("1", "2"):
            for _ in range(4):
                done = run("""
                    model = nibblenet.pack(state_dict(), bits=4)
                    image = prepared(1)

                    def work():
                        while True:
                            model(image)

                    for _ in range(3):
                        threading.Thread(target=work, daemon=True).start()
                    time.sleep(0.1)
                    print("end", flush=True)
                """, env={**os.environ, "OMP_NUM_THREADS": threads})
                self.assertEqual((done.returncode, done.stdout), (0, "end\n"), done.stderr)

    def test_short_calls_leave_the_calling_thread_as_it_was(self):
        done = run("""
            import ctypes
            model = nibblenet.pack(state_dict(), bits=4)
            image = prepared(1)
            expected = [model(image) for _ in range(3)][-1]
            mathematics = ctypes.CDLL("libm.so.6")
            before, upward, heard = mathematics.fegetround(), 0x800, []
            signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            mathematics.fesetround(upward)
            same = all(np.array_equal(model(image), expected) for _ in range(2000))
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(before, same, mathematics.fegetround() == upward, len(heard) > 3,
                  signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1})
        """, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.stdout, "0 True True True True\n", done.stderr)

    def test_a_thread_with_a_small_stack_may_call(self):
        done = run("""
            model = nibblenet.pack(state_dict(), bits=4)
            image = prepared(1)
            expected, found = [model(image) for _ in range(3)][-1], []
            threading.stack_size(1 << 16)
            thread = threading.Thread(target=lambda: found.append(all(np.array_equal(model(image), expected) for _ in range(9))))
            thread.start()
            thread.join()
            print(found)
        """, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.stdout, "[True]\n", done.stderr)

    def test_importing_takes_little_beyond_numpy(self):
        done = run("")
        self.assertEqual(done.returncode, 0, done.stderr)
        code = "import numpy, time; start = time.process_time(); import nibblenet; print(time.process_time() - start)"
        seconds = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
                      for _ in range(3))
        self.assertLess(seconds, 0.3)

    @unittest.skipIf("NIBBLENET_SANITIZED" in os.environ, "a sanitizer takes its time")
    def test_a_call_takes_little_beyond_its_pass(self):
        for threads in ("1", "2"):
            done = run("""
                model = nibblenet.pack(state_dict(), bits=4)
                planes = prepared(1)
                pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

                def seconds(given, kind):
                    start = time.perf_counter()
                    model(given)
                    whole = time.perf_counter() - start
                    return whole, whole - model._core.last_seconds[kind]

                for given, kind in ((pixels, 0), (planes, 0), (pictures(1), 1)):
                    times = [seconds(given, kind) for _ in range(2000)]  # other work on the machine may slow most
                    print(*(1e6 * min(each) for each in zip(*times)))
                nothing = prepared(0)
                print(1e6 * min(seconds(nothing, 0)[0] for _ in range(2000)))
            """, env={**os.environ, "OMP_NUM_THREADS": threads})
            (whole, floats), (copied, planes), (_, pictures_), (nothing,) = (
                map(float, line.split()) for line in done.stdout.splitlines())
            with self.subTest(threads, output=done.stdout):
                # Measured: 4 to 9, at 2 threads 7 to 15, which other work on the machine's
                # processors slows in every call. Where each side sleeps at once: 45.
                for beyond in (floats, planes, pictures_):
                    self.assertLess(beyond, 20 if threads == "1" else 30)
                if threads == "1":  # with others, two passes differ by more, and so do two wakings
                    self.assertLess(nothing, 20)
                    self.assertLess(copied - whole, 15)  # the copy

    def test_nothing_leaks(self):
        done = run("""
            for _ in range(2):
                with nibblenet.pack(state_dict(), bits=4) as model:
                    model(prepared(1)), model.dequantize(), model.size
                for wrong in (None, prepared(1)[0]):
                    try:
                        model(wrong)
                    except ValueError:
                        pass
            nibblenet.check(state_dict())
        """)
        self.assertEqual((done.returncode, done.stderr), (0, ""))  # nanobind reports leaks there


if __name__ == "__main__":
    unittest.main()
