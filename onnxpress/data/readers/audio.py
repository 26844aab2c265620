"""Folders of sound files, mixed to mono, resampled where the preprocessing names a rate, cut or padded to the model's
length.

PCM of 8, 16, 24 or 32 bits in .wav files is read without another package, flac, ogg and other .wav files by soundfile.
"""

from __future__ import annotations

import importlib.util
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from onnxpress.data import labels as labelling
from onnxpress.data.checks import is_float
from onnxpress.data.layout import BatchLayout, Port
from onnxpress.data.preprocessing import read_preprocessing
from onnxpress.data.readers.arrays import single_port
from onnxpress.data.readers.files import classes, relative, unreadable
from onnxpress.data.source import LoadedSource, SampleSource
from onnxpress.errors import InputProblem, missing_extra
from onnxpress.model.signature import Signature

SUFFIXES = (".wav", ".flac", ".ogg")
_WHAT = "cannot use the sound"


@dataclass(frozen=True)
class WaveformSpec:
    """How an input takes a waveform.

    axis:   of time, in a sample without batch axis
    length: number of frames; None where dynamic
    """

    port: Port
    axis: int
    length: int | None


@dataclass(frozen=True)
class Recording:
    """What a file says of its sound. rate: in Hz. width: bytes of a number, 0 where soundfile reads it."""

    rate: int
    channels: int
    frames: int
    width: int


class Sounds(SampleSource):
    """Sound files as samples of one input, read on demand. rate: that they are resampled to, None: as recorded."""

    def __init__(
        self,
        files: Sequence[Path],
        keys: Sequence[str],
        labels: Sequence[Any | None],
        spec: WaveformSpec,
        rate: int | None = None,
    ) -> None:
        self._files, self._keys, self.labels, self._spec, self._rate = files, keys, labels, spec, rate

    def read(self, index: int) -> dict[str, np.ndarray]:
        port = self._spec.port
        values = load(self._files[index], is_float(port.spec.dtype), self._spec.length, self._rate)
        shape = [1] * max(len(port.inner or (0,)), 1)
        shape[self._spec.axis] = len(values)
        return {port.name: values.reshape(shape)}

    def key(self, index: int) -> str:
        return self._keys[index]


def waveform_spec(layout: BatchLayout, where: object) -> WaveformSpec:
    """How the model's only input takes a waveform.  Raises InputProblem where it does not."""
    port = single_port(layout, where, "a folder of .wav files")
    inner = (port.dims if port.loose else port.inner) or ()
    if 1 <= len(inner) <= 2:
        time = [i for i, d in enumerate(inner) if d != 1]
        channel = [d for d in inner if d == 1]
        if len(inner) == 1 or (len(time) == 1 and len(channel) == 1):
            axis = time[0] if time else 0
            size = inner[axis]
            if not isinstance(size, int) or size >= 256:  # a small fixed size means features, not sound
                return WaveformSpec(port, axis, size if isinstance(size, int) else None)
    raise InputProblem(
        _WHAT,
        where,
        f"input {port.name!r} takes {port.spec.text()}, which is not a waveform",
        "compute the features and give an .npz or module:function",
    )


def open_sounds(
    folder: Path,
    files: Sequence[Path],
    signature: Signature,
    layout: BatchLayout,
    label_file: Path | None,
    preprocess: str | None = None,
) -> LoadedSource:
    """A source of sound files; the header of every file is read now.  Raises InputProblem."""
    spec = waveform_spec(layout, folder)
    rate = read_preprocessing(preprocess).rate if preprocess is not None else None
    rates: dict[int, Path] = {}
    channels = 1
    for path in files:
        found = header(path)
        rates.setdefault(found.rate, path)
        channels = max(channels, found.channels)
    if len(rates) > 1 and rate is None:
        listed = ", ".join(f"{path.name} at {rate} Hz" for rate, path in sorted(rates.items()))
        raise InputProblem(
            _WHAT,
            folder,
            f"the files differ in their sampling rate: {listed}",
            "name the rate that the model was trained on: `preprocess` with a TOML file of [audio] rate = 16000",
        )
    keys = relative(folder, files)
    order: tuple[str, ...] = ()
    if label_file is not None:
        values, notes = labelling.read_file(label_file, keys)
        labelling.check_label_count(values, len(files), label_file)
        labels, more = labelling.normalize_labels(values, signature, label_file)
        notes = [f"labels from {label_file.name}", *notes, *more]
    else:
        named, order, notes = classes(folder, files)
        labels = list(named) if named is not None else [None] * len(files)
    assumed = [f"{next(iter(rates))} Hz as recorded, not resampled" if rate is None else f"resampled to {rate} Hz"]
    if is_float(spec.port.spec.dtype):
        assumed.append("values scaled to [-1,1]")
    if channels > 1:
        assumed.append("channels averaged to mono")
    if spec.length is not None:
        assumed.append(f"cut (centre) or padded with silence (end) to {spec.length} frames")
    return LoadedSource(Sounds(files, keys, labels, spec, rate), folder.name, [*assumed, *notes], class_names=order)


def header(path: Path) -> Recording:
    """What a file says of its sound.

    Raises InputProblem for what cannot be read, and EnvironmentProblem where it needs soundfile, which is not there.
    """
    if path.suffix.lower() != ".wav":
        return _soundfile_header(path)
    try:
        with wave.open(str(path), "rb") as stream:
            found = stream.getparams()
    except (wave.Error, EOFError, OSError, RuntimeError) as error:
        if "unknown format" in str(error) and importlib.util.find_spec("soundfile") is not None:
            return _soundfile_header(path)  # floats, or compressed
        raise _not_pcm(path, error) from error
    if found.sampwidth not in (1, 2, 3, 4) or found.nchannels < 1:
        raise InputProblem(
            _WHAT,
            path,
            f"{8 * found.sampwidth} bits and {found.nchannels} channels",
            "save it as PCM of 16 bits",
        )
    if not found.nframes:
        raise InputProblem(_WHAT, path, "it has no frames", "remove it")
    size, need = path.stat().st_size, found.nframes * found.sampwidth * found.nchannels
    if size < need:
        raise InputProblem(_WHAT, path, f"the file is truncated: {need} bytes expected, {size} found", "restore it")
    return Recording(found.framerate, found.nchannels, found.nframes, found.sampwidth)


def _soundfile_header(path: Path) -> Recording:
    soundfile = _soundfile()
    try:
        found = soundfile.info(str(path))
    except Exception as error:  # of libsndfile
        raise unreadable(path, error, "save it as .wav") from error
    if not found.frames:
        raise InputProblem(_WHAT, path, "it has no frames", "remove it")
    return Recording(int(found.samplerate), int(found.channels), int(found.frames), 0)


def _soundfile() -> Any:
    try:
        return import_module("soundfile")
    except ImportError:
        raise missing_extra("soundfile", "audio", "reading flac and ogg") from None


def _not_pcm(path: Path, error: BaseException) -> InputProblem:
    why = str(error)
    if "unknown format" in why:
        return InputProblem(
            _WHAT, path, f"it is not PCM ({why})",
            "install the extra `audio`, or convert it: ffmpeg -i in.wav -c:a pcm_s16le out.wav",
        )  # fmt: skip
    return unreadable(path, error, "save it as PCM of 16 bits")


def load(path: Path, floats: bool, length: int | None, rate: int | None = None) -> np.ndarray:
    """One sound as [frames]: float32 in [-1,1], or integers as stored.

    length: of the result, cut from the centre or padded at the end. rate: in Hz, that it is resampled to.

    Raises InputProblem.
    """
    found = header(path)
    same = rate in (None, found.rate)
    start, count = 0, found.frames
    if same and length is not None and count > length:
        start, count = (count - length) // 2, length
    values = _read(path, found, start, count)
    mixed = values.mean(axis=1, dtype=np.float64) if found.channels > 1 else values[:, 0].astype(np.float64)
    if not same and rate is not None:
        from scipy.signal import resample_poly  # takes a third of a second to import

        step = math.gcd(rate, found.rate)
        mixed = resample_poly(mixed, rate // step, found.rate // step)
        if length is not None and len(mixed) > length:
            mixed = mixed[(len(mixed) - length) // 2 :][:length]
    full = 2 ** (8 * (found.width or 2) - 1)  # of the integers as stored; 16 bits where they are not
    if floats:
        out = (mixed / (full if found.width else 1)).astype(np.float32)
    else:
        out = np.rint(mixed * (1 if found.width else full)).astype(np.int64)
    if length is not None and len(out) < length:
        out = np.pad(out, (0, length - len(out)))
    return np.asarray(out)


def _read(path: Path, found: Recording, start: int, count: int) -> np.ndarray:
    """[frames, channels] as stored; in [-1,1] where soundfile reads it."""
    if not found.width:
        try:
            return np.asarray(_soundfile().read(str(path), count, start, dtype="float64", always_2d=True)[0])
        except RuntimeError as error:
            raise unreadable(path, error, "save it as .wav") from error
    try:
        with wave.open(str(path), "rb") as stream:
            stream.setpos(start)
            data = stream.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        raise _not_pcm(path, error) from error
    return _decoded(data, found.width).reshape(-1, found.channels)


def _decoded(data: bytes, width: int) -> np.ndarray:
    """Little-endian PCM as signed integers; 8-bit values are stored unsigned."""
    data = data[: len(data) // width * width]
    if width == 1:
        return np.frombuffer(data, np.uint8).astype(np.int16) - 128
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return np.asarray(wide.view("<i4")[:, 0] >> 8)
    return np.frombuffer(data, f"<i{width}")
