"""Arrays that say they are a GPU's, in the host's memory: for a module whose device cuda is the CPU."""

import ctypes
import unittest
import unittest.mock

import numpy as np

from nibblenet import _core, _gpu

try:
    import torch
except ModuleNotFoundError:
    torch = None

CUDA = 2  # DLPack's kDLCUDA


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_is_named = ctypes.pythonapi.PyCapsule_IsValid
_is_named.argtypes = [ctypes.py_object, ctypes.c_char_p]

lent = {}  # capsules and what they hold, by address, until a consumer gives it back
_CODES = {"i": 0, "u": 1, "f": 2}


@_Deleter
def _give_back(address):
    del lent[address]


def capsule(values, number=0, kind=CUDA):
    """A NumPy array's memory as a DLPack capsule of GPU `number`. Its consumer keeps the array alive."""
    shape = (ctypes.c_int64 * values.ndim)(*values.shape)
    strides = (ctypes.c_int64 * values.ndim)(*(stride // values.itemsize for stride in values.strides))
    tensor = _DLTensor(values.ctypes.data, kind, number, values.ndim, _CODES[values.dtype.kind], 8 * values.itemsize, 1,
                       shape, strides, 0)
    managed = _Managed(tensor, None, _give_back)
    made = _new_capsule(ctypes.addressof(managed), b"dltensor", None)
    lent[ctypes.addressof(managed)] = made, managed, shape, strides, values
    return made


class Array:
    """A GPU's array of another library than PyTorch."""

    def __init__(self, values, number=0):
        self.values, self.number = values, number

    def __dlpack_device__(self):
        return CUDA, self.number

    def __dlpack__(self, **_):
        return capsule(self.values, self.number)


_library = ctypes.CDLL(_core.__file__)
runs_on_host = hasattr(_library, "hostexec_stream")
if runs_on_host:
    _library.hostexec_stream.restype = ctypes.c_size_t
    _library.hostexec_waiting.restype, _library.hostexec_waiting.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    _library.hostexec_synchronize.argtypes = [ctypes.c_size_t]
    _library.hostexec_copy_later.argtypes = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Stream:
    """A stream of another library. Its work is done when somebody waits for it, not before."""

    def __init__(self):
        self.cuda_stream, self.kept = _library.hostexec_stream(), []

    def copy_later(self, to, values):
        """Writes values to an array of the same bytes."""
        assert to.nbytes == values.nbytes and to.flags.c_contiguous and values.flags.c_contiguous
        self.kept.append((to, values))
        _library.hostexec_copy_later(self.cuda_stream, to.ctypes.data, values.ctypes.data, to.nbytes)

    def waiting(self):
        return _library.hostexec_waiting(self.cuda_stream)

    def synchronize(self):
        _library.hostexec_synchronize(self.cuda_stream)


class OnHost(unittest.TestCase):
    """Tests of what a module does for a GPU, by CUDA kernels that run on the CPU."""

    @classmethod
    def setUpClass(cls):
        if not runs_on_host:
            raise unittest.SkipTest("this module's device cuda is not the CPU: tools/dev wheel --hostexec makes one")

    def tearDown(self):
        taken = [made for made, *_ in lent.values() if not _is_named(made, b"dltensor")]  # consumers rename them
        lent.clear()
        self.assertEqual(taken, [], "arrays that were taken and not given back")


def filled(shape, dtype=np.float32):
    """Memory that no kernel has written: NaN."""
    return np.full(shape, np.nan, dtype)

if torch is not None:
    class Double(torch.Tensor):
        """A tensor of the host's memory that says it is on a GPU, and so do results of operations on it."""

        @property
        def device(self):
            return torch.device("cuda", 0)

        is_cpu, is_cuda = False, True

        def __deepcopy__(self, _):
            return double(self)

        def cpu(self):
            return self.as_subclass(torch.Tensor).clone()

        def __dlpack_device__(self):
            return CUDA, self.device.index


def double(tensor):
    """A copy of a tensor on the GPU that is the host."""
    return tensor.detach().clone().as_subclass(Double)


def plain(tensor):
    """The NumPy array of a double's memory."""
    return tensor.as_subclass(torch.Tensor).numpy()


class WithDoubles(OnHost):
    """Tests of what the package does with PyTorch's tensors of a GPU, by doubles of these."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if torch is None:
            raise unittest.SkipTest("PyTorch is not installed")

    def setUp(self):
        self.stream = Stream()
        for name, stand_in in (("shared", lambda tensor: capsule(plain(tensor), tensor.device.index)),
                               ("stream_of", lambda tensor: self.stream.cuda_stream)):
            patch = unittest.mock.patch.object(_gpu, name, stand_in)
            patch.start()
            self.addCleanup(patch.stop)
