"""Container: video files through PyAV, which brings its own decoders: MP4, MOV, WebM, MKV, AVI, MPEG and others.

A stretch is read by seeking to the key frame before it. Where that fails (a container without an index, a key frame
whose picture comes later than its packet, frames without timestamps), the decoder starts earlier, at last from the
beginning: slower, but the same frames.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from suffuse_video.placing import Pixels
from suffuse_video.timeline import ClipError, Head, Wanted, chosen, consecutive

__all__ = ["probe", "read"]

EARLIER = (Fraction(0), Fraction(2), Fraction(10))
"""Seconds before the wanted time that are sought in turn."""


def probe(source: Path | bytes) -> Head:
    """Return what is known of a file; its first frame is decoded.

    Raises:
        ClipError: When it is no video, or its first frame cannot be decoded.
    """
    with _Reading(source) as reading:
        clock = reading.clock()
        frame = reading.first()
        height, width = _turned(np.empty((frame.height, frame.width, 0), np.uint8), frame).shape[:2]
        aspect = reading.aspect(frame)
        return Head(clock.frames, float(clock.rate), height, round(width * aspect), float(clock.seconds))


def read(source: Path | bytes, wanted: Wanted) -> list[tuple[Pixels, float]]:
    """Return frames (H, W, 3) and the proportions of their pixels.

    Raises:
        ClipError: When they cannot be read.
    """
    for back in (*EARLIER, None):
        with _Reading(source) as reading:
            found = reading.frames(wanted, back)
        if found is not None:
            return found
    raise AssertionError("the last way reads from the beginning")


@dataclass(frozen=True)
class _Clock:
    """Timing of a stream: frames, frames per second, length, and the timestamp of the first frame in seconds."""

    frames: int
    rate: Fraction
    seconds: Fraction
    origin: Fraction


class _LostError(Exception):
    """A frame after seeking does not say when it is shown."""


class _Reading:
    """An open file and its video stream; every fault of the decoder is a `ClipError`."""

    # PyAV's own types do not tell a file that is read from one that is written.
    container: Any
    stream: Any

    def __init__(self, source: Path | bytes) -> None:
        self.source = source

    def __enter__(self) -> _Reading:
        import av

        try:
            file = BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source)
            self.container = av.open(file)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ClipError(_reason(self.source, error)) from error
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in self.container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = {stream.type for stream in self.container.streams}
            self.container.close()
            raise ClipError("it has sound and no pictures" if "audio" in kinds else "it has no video")
        self.stream = streams[0]
        # Loaders have a process per core; more threads would only get in each other's way.
        self.stream.codec_context.thread_count = 1
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import av

        self.container.close()
        if isinstance(error, av.FFmpegError | MemoryError | UnicodeDecodeError):
            raise ClipError(_reason(self.source, error)) from error

    def clock(self) -> _Clock:
        """Return the timing, from the head of the file where it says it, else by counting packets."""
        stream, base = self.stream, self.stream.time_base or Fraction(1, 1000)
        origin = Fraction(stream.start_time or 0) * base
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        seconds, frames = _length(self.container, stream, base), int(stream.frames)
        if not frames and seconds and rate:
            frames = round(seconds * rate)
        if not frames:
            frames = sum(bool(packet.size) for packet in self._fresh().demux(self.stream))
            self._fresh()
        if not frames:
            raise ClipError("it has no frames")
        rate = Fraction(rate) if rate else Fraction(frames) / seconds if seconds else Fraction(25)
        seconds = seconds or Fraction(frames) / rate
        # Of a file whose rate varies, or is a guess, the mean is what length and number say.
        mean = Fraction(frames) / seconds
        return _Clock(frames, rate if abs(mean / rate - 1) < 0.02 or frames < 3 else mean, seconds, origin)

    def first(self) -> Any:
        """Return the first frame."""
        for frame in self.container.decode(self.stream):
            return frame
        raise ClipError("it has no frames")

    def aspect(self, frame: Any) -> float:
        """Return the width of a pixel, as shown, divided by its height."""
        ratio = self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio
        found = float(ratio) if ratio and 0.1 < ratio < 10 else 1.0
        return 1 / found if _swapped(frame) else found

    def frames(self, wanted: Wanted, back: Fraction | None) -> list[tuple[Pixels, float]] | None:
        """Return the frames that are wanted, or None when seeking `back` seconds before them went past them."""
        clock = self.clock()
        fps = wanted.fps or clock.rate
        times = wanted.times(max(1, round(clock.seconds * fps)) if wanted.fps else clock.frames, fps)
        start, end = min(times), min(max(times), clock.seconds)
        sought = back is not None and self._seek(start - back, clock)
        shown = self._shown(clock, sought)
        try:
            first = next(shown, None)
        except _LostError:
            return None
        if sought and (first is None or first[0] > start):
            return None
        if first is None:
            raise ClipError("it has no frames")
        whole = self._whole(first, shown, end - max(Fraction(1, 4), 3 / clock.rate), clock)
        if wanted.fps is not None:
            return chosen(whole, times, self._pixels)
        place = min(round(wanted.start * clock.rate), clock.frames - 1)
        again = wanted.short == "repeat" and place + len(times) > clock.frames
        number = None if again or wanted.frames is None else wanted.frames
        found = consecutive(whole, start - 1 / (2 * clock.rate), number, self._pixels)
        return [found[(place + j) % len(found)] for j in range(len(times))] if again else found

    def _whole(
        self, first: tuple[Fraction, Any], rest: Iterator[tuple[Fraction, Any]], end: Fraction, clock: _Clock
    ) -> Iterator[tuple[Fraction, Any]]:
        """Yield frames, and raise `ClipError` when there are no more of them before the time `end`."""
        yield first
        last = first[0]
        for time, frame in rest:
            last = time
            yield time, frame
        # A head may be off by a frame or two; a file that was cut is far shorter than its head says.
        if last < end:
            raise ClipError(f"it is truncated: it ends after {float(last):.2f} of {float(clock.seconds):.2f} seconds")

    def _seek(self, time: Fraction, clock: _Clock) -> bool:
        """Go to the key frame before a time; return whether the decoder was moved at all."""
        import av

        if time <= 0:
            return False
        try:
            self.container.seek(int((time + clock.origin) / self.stream.time_base), stream=self.stream)
        except (av.FFmpegError, OSError):
            self._fresh()
            return False
        return True

    def _shown(self, clock: _Clock, sought: bool) -> Iterator[tuple[Fraction, Any]]:
        """Yield frames with their times, which rise; a frame without a timestamp follows the one before."""
        last: Fraction | None = None
        for frame in self.container.decode(self.stream):
            if frame.pts is not None:
                time = Fraction(frame.pts) * frame.time_base - clock.origin
                time = time if last is None else max(time, last + 1 / (64 * clock.rate))
            elif last is not None:
                time = last + 1 / clock.rate
            elif sought:
                raise _LostError
            else:
                time = Fraction(0)
            last = time
            yield time, frame

    def _fresh(self) -> Any:
        """Return the file opened anew, from its beginning, in place of the one that is open."""
        import av

        number = self.stream.index  # of a closed file it is no longer known
        self.container.close()
        self.container = av.open(BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source))
        self.stream = self.container.streams[number]
        self.stream.codec_context.thread_count = 1
        return self.container

    def _pixels(self, frame: Any) -> tuple[Pixels, float]:
        # Players take untagged high definition for BT.709 and everything else for BT.601.
        untagged = int(frame.colorspace) == 2 and frame.height >= 720
        how = {"src_colorspace": "ITU709"} if untagged else {}
        # Threads of the conversion would not survive the fork of a loader's workers, which then wait for them.
        array = frame.reformat(format="rgb24", interpolation=_exact(), threads=1, **how).to_ndarray()
        return np.ascontiguousarray(_turned(array, frame)), self.aspect(frame)


@functools.cache
def _exact() -> Any:
    """Return the flags that round colours to the nearest level: without them everything comes out a level too dark."""
    from av.video.reformatter import Interpolation

    flags = [Interpolation[name] for name in ("BILINEAR", "FULL_CHR_H_INT", "ACCURATE_RND")]
    return functools.reduce(operator.or_, flags)


def _length(container: Any, stream: Any, base: Fraction) -> Fraction:
    """Return the length of a stream in seconds as its head says it; 0 where it does not."""
    if stream.duration:
        return Fraction(stream.duration) * base
    said = str(stream.metadata.get("DURATION", ""))  # of Matroska: the sound of a file may be longer
    hours, _, rest = said.partition(":")
    minutes, _, rest = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(rest)
    except ValueError:
        return Fraction(container.duration or 0, 1_000_000)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    for data in frame.side_data:
        if "DISPLAYMATRIX" in str(data.type):
            values = np.frombuffer(bytes(data), np.int32)
            return int(values[0]), int(values[1]), int(values[3]), int(values[4])
    return 1, 0, 0, 1


def _swapped(frame: Any) -> bool:
    a, b, _, _ = _matrix(frame)
    return abs(b) > abs(a)


def _turned(array: Pixels, frame: Any) -> Pixels:
    """Return pixels (H, W, …) turned by quarters and mirrored as the file says."""
    a, b, c, d = _matrix(frame)
    if abs(b) > abs(a):
        array, a, d = array.swapaxes(0, 1), c, b
    array = array[:, ::-1] if a < 0 else array
    return array[::-1] if d < 0 else array


def _reason(source: Path | bytes, error: BaseException) -> str:
    if isinstance(source, Path) and not source.exists():
        return "there is no such file"
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        return "it is empty"
    text = str(getattr(error, "strerror", None) or error)
    if "End of file" in text:
        return "it has no frames"
    if "Invalid data" in text or "moov" in text:
        return "it is no video or picture, or is damaged"
    return " ".join(text.split()) or type(error).__name__
