from collections.abc import Sequence
from typing import Any, SupportsIndex, TypedDict, final

import numpy as np
import numpy.typing as npt

from softgate._typing import Array, SameArray

@final
class Tensor:
    """Typed memory on a device: float32, float16, bfloat16, int8, int32, int64 or bool.

    The last dimension is contiguous; outer strides are free.
    """

    def __init__(self, array: Array) -> None:
        """Share the memory of a NumPy array, a Tensor, or an object with `__dlpack__` or
        `__cuda_array_interface__`, on the CPU or a CUDA device.

        What its owner computes is done before what our current stream is given next; the owner must
        not use the memory again before our stream is done.

        Raises TypeError for another object or dtype; ValueError for another device, a last
        dimension that is not contiguous, a negative stride, misaligned elements, or more than 8
        dimensions; RuntimeError for a CUDA device where this build or machine has no CUDA.
        """

    @staticmethod
    def empty(
        shape: SupportsIndex | Sequence[SupportsIndex],
        dtype: str = "float32",
        device: str = "cpu",
    ) -> Tensor:
        """Uninitialised and contiguous, on "cpu", "cuda", or "cuda:1" and so on.

        Raises ValueError for a negative or too large shape and for an unknown device, TypeError for
        an unknown dtype, MemoryError when there is no room, RuntimeError when this build or machine
        has no CUDA.
        """

    def to(self, device: str | None = None, dtype: str | None = None) -> Tensor:
        """A contiguous copy on another device or in another dtype; itself where both stay.

        float32, float16 and bfloat16 convert into each other, rounding to nearest even. A copy to
        the CPU waits for the device's current stream; captured in a graph, one to a device is a
        constant. Raises TypeError for other conversions; otherwise as `empty`.
        """

    def copy_(self, source: Array) -> Tensor:
        """Overwrite the elements with those of `source`, of the same shape; returns the tensor.

        Converts as `to`. Raises ValueError for another shape, shared memory, and a tensor that is
        read-only.
        """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def numpy(self) -> npt.NDArray[Any]:
        """An array that shares the memory.

        Raises TypeError for bfloat16, which NumPy lacks, and ValueError for a tensor that is not on
        the CPU.
        """

    def reshape(self, shape: SupportsIndex | Sequence[SupportsIndex]) -> Tensor:
        """A view of another shape, in which one size may be -1.

        Raises ValueError when the sizes do not fit or the strides do not allow a view.
        """

    def item(self) -> float | int | bool:
        """The only element. Raises ValueError when there is not exactly one."""

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. Raises AttributeError for another device and for bfloat16."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: SupportsIndex | slice | tuple[SupportsIndex | slice, ...]) -> Tensor:
        """A view. Raises IndexError out of range, ValueError for a slice with a step."""

@final
class SequenceOffsets:
    """Where the sequences of a packed batch begin, checked, on the host and on a device.

    Ops take it as `cu_seqlens`; given that, they copy nothing between the two.
    """

    def __init__(self, cu_seqlens: Array, device: str = "cpu") -> None:
        """cu_seqlens: int32 `[batch + 1]`, starting at 0, never falling; copied to `device`.

        Raises ValueError for other offsets, TypeError for another dtype; otherwise as
        `Tensor.empty`.
        """

    @property
    def cu_seqlens(self) -> Tensor:
        """On the device, read-only."""
    @property
    def device(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def total(self) -> int:
        """Tokens of all sequences."""
    @property
    def longest(self) -> int:
        """Tokens of the longest."""
    def numpy(self) -> npt.NDArray[np.int32]:
        """The offsets on the host, read-only."""

@final
class Event:
    """A moment of a stream."""

    def synchronize(self) -> None:
        """Wait until it has passed."""

    def milliseconds_to(self, later: Event) -> float:
        """Between two events that have passed."""

@final
class Graph:
    def launch(self) -> None: ...

@final
class Stream:
    """A queue of a device. Entered, it is the calling thread's current one."""

    def __init__(self, device: str = "cuda") -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def handle(self) -> int:
        """The address of the `cudaStream_t`."""

    def synchronize(self) -> None:
        """Wait until everything it was given is done."""

    def wait(self, event: Event) -> None:
        """What it is given from now on waits for `event`."""

    def record(self) -> Event:
        """The moment when everything it was given so far is done."""

    def begin_capture(self) -> None: ...
    def end_capture(self) -> Graph: ...
    def __enter__(self) -> Stream: ...
    def __exit__(self, *error: object) -> None: ...

class DeviceInfo(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int

class Transfers(TypedDict):
    uploads: int
    uploaded_bytes: int
    downloads: int
    downloaded_bytes: int

def transfers() -> Transfers:
    """What was copied between the host and other devices since the process began."""

def device_count(kind: str = "cuda") -> int: ...
def device_info(device: str = "cuda") -> DeviceInfo: ...
def synchronize(device: str = "cuda") -> None:
    """Wait until everything that the current stream of a device was given is done."""

def device_cached_bytes(device: str = "cuda") -> int: ...
def device_release_cached(device: str = "cuda") -> None: ...

@final
class PackedWeight:
    """A weight in the layout that `linear` reads on its device; `softgate.ops.pack` makes it."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
    @property
    def dtype(self) -> str:
        """float32, float16, bfloat16, int8 or int4."""
    @property
    def group_size(self) -> int:
        """Of integers: how many of a row share a scale; 0 where all of it do."""
    @property
    def gated(self) -> bool:
        """Whether the rows are [gate; up]."""
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def isa(self) -> str | None:
        """The one whose kernels read it; None but on the CPU."""

    def unpack(self) -> Tensor:
        """`[out_features, in_features]`, on the weight's device, on the CPU as float32.

        The weight that was packed, bit for bit where its dtype was kept or widened; of integers
        what they stand for, as float32. Raises ValueError when another ISA is in use.
        """

    def quantized(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(values, scales, minimums) of an int8 or int4 weight as stored, for `ops.pack_groups`, on
        the CPU.

        values: int8 `[out_features, in_features]`; scales: float32 `[out_features]`, or float16
        `[out_features, in_features / 32]` as are minimums, None where there are none. Raises
        ValueError for another dtype and when another ISA is in use.
        """

@final
class RecurrentWeight:
    """The weights of one direction of a recurrent layer, in the layout that the kernels of one ISA
    or of a device read.

    `softgate.ops.pack_recurrent` makes it.
    """

    @property
    def kind(self) -> str: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def output_size(self) -> int:
        """Columns of `weight_hh`: the projection's size, else `hidden_size`."""

    @property
    def dtype(self) -> str:
        """How `weight_hh` is stored."""

    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def isa(self) -> str | None:
        """None on a device other than the CPU."""

    def unpack(self) -> dict[str, Tensor]:
        """What was packed, by `pack_recurrent`'s names, without what was not given.

        Bit for bit, but for a `weight_hh` that was rounded to fewer bits. Raises ValueError when
        another ISA is in use.
        """

    def with_inputs(self, weight_ih: Array) -> RecurrentWeight:
        """The same but for `weight_ih`, float32 of as many rows; the rest is shared. On the CPU."""

def num_threads() -> int:
    """Threads a kernel may use: SOFTGATE_NUM_THREADS, else the CPUs this process may use."""

def set_num_threads(count: int) -> None:
    """Raises ValueError unless `1 <= count <= 1024`."""

def isa() -> str:
    """The instruction set in use: "amx", "avx512", "avx2" or "generic"."""

def isas() -> list[str]:
    """The instruction sets this CPU runs, best first."""

def set_isa(name: str) -> None:
    """Raises ValueError unless `name` is one of `isas()`. Not for use while kernels run."""

def cached_bytes() -> int:
    """Memory kept for the next tensors."""

def release_cached() -> None:
    """Give the memory kept for the next tensors back to the system."""

def pack(weight: Array, dtype: str | None, gated: bool) -> PackedWeight: ...
def pack_groups(
    values: Array, scales: Array, minimums: Array | None, bits: int, gated: bool
) -> PackedWeight: ...
def gather(
    weight: PackedWeight,
    ids: SameArray,
    scale: float,
    residual: Array | None,
    out: Array | None,
) -> SameArray: ...
def linear(
    x: SameArray,
    weight: PackedWeight,
    bias: Array | None,
    activation: str,
    residual: Array | None,
    out: Array | None,
) -> SameArray: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    mask: Array | None,
    relative_bias: Array | None,
    softcap: float,
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
) -> Array | tuple[Array, ...]: ...
def cached_attention(
    q: SameArray,
    k_cache: Array,
    v_cache: Array,
    cu_seqlens_q: Array,
    lengths_k: Array,
    cache_rows: Array | None,
    relative_bias: Array | None,
    scale: float | None,
    window: tuple[int, int],
    causal: bool,
    softcap: float,
    out: Array | None,
) -> SameArray: ...
def add_layer_norm(
    x: SameArray,
    residual: Array | None,
    weight: Array,
    bias: Array | None,
    eps: float,
    out: Array | None,
    sum_out: Array | None,
) -> SameArray: ...
def add_rms_norm(
    x: SameArray,
    residual: Array | None,
    weight: Array,
    eps: float,
    out: Array | None,
    sum_out: Array | None,
) -> SameArray: ...
def embedding(
    ids: list[SameArray],
    tables: list[Array],
    norm_weight: Array | None,
    norm_bias: Array | None,
    eps: float,
    out: Array | None,
) -> SameArray: ...
def pack_recurrent(
    kind: str,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    weight_hr: Array | None,
    dtype: str,
) -> RecurrentWeight: ...
def recurrent(
    op: str,
    x: SameArray,
    cu_seqlens: Array,
    weights: list[RecurrentWeight],
    h0: Array | None,
    c0: Array | None,
    h0_rows: Array | None,
    direction: str,
    out: Array | None,
) -> tuple[SameArray, ...]: ...
def recurrent_cell(
    op: str, x: SameArray, weight: RecurrentWeight, h: Array, c: Array | None
) -> Any: ...
def softmax(x: SameArray, out: Array | None) -> SameArray: ...
def pool(x: SameArray, cu_seqlens: Array, mode: str, out: Array | None) -> SameArray: ...
def normalize(x: SameArray, eps: float, out: Array | None) -> SameArray: ...
def penalize(logits: SameArray, ids: Array, cu_ids: Array, penalty: float) -> SameArray: ...
def rotary(
    qkv: SameArray,
    cu_seqlens: Array,
    starts: Array,
    k_cache: Array,
    v_cache: Array,
    num_heads: int,
    cos: Array | None,
    sin: Array | None,
    q_norm: Array | None,
    k_norm: Array | None,
    eps: float,
    interleaved: bool,
    cache_rows: Array | None,
    out: Array | None,
) -> SameArray: ...
def sample(
    logits: SameArray,
    random: Array,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> SameArray: ...
def source_attention(
    query: SameArray, keys: Array, values: Array, cu_seqlens: Array, sources: Array, v: Array | None
) -> tuple[SameArray, SameArray]: ...
def softcap(logits: SameArray, cap: float) -> SameArray: ...
def token_logprobs(logits: SameArray, ids: Array) -> SameArray: ...
def top_continuations(
    logits: SameArray, scores: Array, count: int, banned: Array, cu_banned: Array
) -> tuple[SameArray, SameArray, SameArray]: ...
