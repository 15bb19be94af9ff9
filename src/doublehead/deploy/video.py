"""Videos: detections frame by frame, with their times; annotated, and as COCO's JSON."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import whole
from doublehead.data.images import to_tensor
from doublehead.deploy.bulk.coco import coco_writer
from doublehead.deploy.bulk.detecting import AHEAD, ahead
from doublehead.inference.detections import Detections
from doublehead.inference.predictor import Predictor

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv")
TICKS = 90000  # a second of the annotated video, as MPEG counts; frames keep their times, however uneven
TURNS = {
    90: Image.Transpose.ROTATE_90,
    -90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
}
"""What turns a frame upright, by the degrees anticlockwise that its container tells."""


@dataclass(frozen=True)
class Frame:
    """A frame and what was found in it."""

    number: int  # from 0
    seconds: float  # since the video's beginning
    detections: Detections  # with the frame, upright, as their picture


@dataclass(frozen=True)
class VideoWritten:
    """How it went."""

    frames: int
    fault: str | None  # what ended it early; the frames before are written


def detect_video(predictor: Predictor, path: str | Path, score: float = 0.5, batch_size: int = 4) -> Iterator[Frame]:
    """Detect objects in every frame; decoding goes ahead while the model is busy.

    Args:
        predictor: the model.
        path: a video that FFmpeg reads.
        score: detections below it are left out.
        batch_size: frames that go through the model at once.

    Raises:
        DoubleheadError: PyAV is not installed, the file is no video, or it breaks off; all frames before have come.
    """
    for batch in ahead(_batches(Path(path), batch_size), AHEAD):
        found = predictor.detect([to_tensor(picture) for _, _, picture in batch])
        for (number, seconds, picture), detections in zip(batch, found, strict=True):
            yield Frame(number, seconds, replace(detections.above(score), image=picture))


def count_frames(path: Path) -> int:
    """How many frames a video has, as its container says or as its duration tells; at least 1.

    Raises:
        DoubleheadError: as `detect_video`.
    """
    with _open(path) as (container, stream):
        rate = stream.average_rate or 25
        return max(1, stream.frames or int((container.duration or 0) / 1e6 * rate))


def predict_video(
    predictor: Predictor,
    path: Path,
    output: Path,
    name: str,
    score: float = 0.5,
    batch_size: int = 4,
    pictures: bool = True,
    progress: Callable[[int], object] | None = None,
) -> VideoWritten:
    """Write detections in a video as JSON in COCO's layout, whose images are the frames, and draw them into a copy.

    Times and turns of the frames are those of the video. If it breaks off, or Ctrl-C comes, what was done is kept.

    Args:
        predictor: the model.
        path: the video.
        output: folder to write into.
        name: of the files, to which come .json and .mp4 (H.264, without sound).
        score: detections below it are neither drawn nor written.
        batch_size: frames that go through the model at once.
        pictures: whether to write the annotated copy.
        progress: told how many frames are done.

    Raises:
        DoubleheadError: the file is no video, or it lies in `output`.
    """
    if output.resolve() == path.parent.resolve():
        raise DoubleheadError(f"{output}: holds the video to predict on; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    stop: BaseException | None = None
    with (
        coco_writer(output / f"{name}.json", predictor.categories) as writer,
        _drawing(output / f"{name}.mp4", pictures) as draw,
    ):
        try:
            for frame in detect_video(predictor, path, score, batch_size):
                draw(frame)
                width, height = frame.detections.image.size  # type: ignore[union-attr]
                more = {"frame": frame.number, "seconds": round(frame.seconds, 6)}
                writer.add(f"{path}/{frame.number:06}", width, height, frame.detections, **more)
                if progress:
                    progress(1)
        except (DoubleheadError, KeyboardInterrupt) as error:
            stop = error
        if stop and not writer.images:
            raise stop
    if isinstance(stop, KeyboardInterrupt):
        raise stop
    return VideoWritten(writer.images, str(stop) if stop else None)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; what FFmpeg says of a damaged one is told in a sentence."""
    av = require("av", "video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DoubleheadError(f"{path}: has no pictures; give a video")
            container.streams.video[0].thread_type = "AUTO"
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise DoubleheadError(f"{path}: is not a video that can be read ({error.strerror})") from error


def _batches(path: Path, size: int) -> Iterator[list[tuple[int, float, Image.Image]]]:
    """Frames as number, seconds and upright picture."""
    batch: list[tuple[int, float, Image.Image]] = []
    number, broken = 0, None
    with _open(path) as (container, stream):
        start, rate = stream.start_time or 0, stream.average_rate or 25
        try:
            for frame in _frames(container, stream):
                seconds = (frame.pts - start) * frame.time_base if frame.pts is not None else number / rate
                batch.append((number, float(seconds), _upright(frame)))
                number += 1
                if len(batch) == size:
                    yield batch
                    batch = []
        except _BreaksOffError as error:
            broken = error
    if batch:
        yield batch
    if not number:
        raise DoubleheadError(f"{path}: no frame of it can be read")
    if broken:
        raise DoubleheadError(f"{path}: ends early{broken}; the {number} frames before it are saved")


class _BreaksOffError(Exception):
    """A video ends before its end, for a cause said in brackets if one is known."""


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """All frames, also those that the decoder still held when it met something broken."""
    av, packets = require("av", "video"), 0
    expected = len(stream.index_entries)  # of MP4 all; other containers tell the key frames alone
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            yield from packet.decode()
    except av.FFmpegError as error:
        with suppress(av.FFmpegError):
            yield from stream.decode(None)
        raise _BreaksOffError(f" ({error.strerror})") from error
    if packets < expected:
        raise _BreaksOffError


def _upright(frame: Any) -> Image.Image:
    picture = frame.to_image()
    turn = TURNS.get(round(getattr(frame, "rotation", 0)))
    return picture if turn is None else picture.transpose(turn)


@contextmanager
def _drawing(path: Path, wanted: bool) -> Iterator[Callable[[Frame], None]]:
    """What takes frames and draws them into a video, in a thread; it waits where too many are in hand."""
    if not wanted:
        yield lambda frame: None
        return
    with whole(path) as temporary, ThreadPoolExecutor(1) as pool:
        copy, drawing = _Copy(temporary), deque[Future[None]]()

        def draw(frame: Frame) -> None:
            drawing.append(pool.submit(copy.add, frame))
            while len(drawing) > 2 * AHEAD:
                drawing.popleft().result()

        yield draw
        for one in drawing:
            one.result()
        copy.close()


class _Copy:
    """The annotated video. Its size is the first frame's, made even as H.264 wants it."""

    def __init__(self, path: Path) -> None:
        self.av = require("av", "video")
        self.container = self.av.open(str(path), "w", format="mp4")
        self.stream: Any = None
        self.last = -1

    def add(self, frame: Frame) -> None:
        picture = frame.detections.draw(score=0)
        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=25, options={"crf": "20"})
            self.stream.width, self.stream.height = (side + side % 2 for side in picture.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS)
        size = self.stream.width, self.stream.height
        canvas = Image.new("RGB", size)
        canvas.paste(picture if max(picture.width - size[0], picture.height - size[1]) <= 0 else picture.resize(size))
        image = self.av.VideoFrame.from_image(canvas)
        image.pts = self.last = max(self.last + 1, round(frame.seconds * TICKS))
        image.time_base = Fraction(1, TICKS)
        self.container.mux(self.stream.encode(image))

    def close(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))
        self.container.close()
