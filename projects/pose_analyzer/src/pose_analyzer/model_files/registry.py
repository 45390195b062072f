"""Every file that may be downloaded: size, licence, content, sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

APACHE: Final = "Apache-2.0"
AGPL: Final = "AGPL-3.0"
BSD: Final = "BSD-3-Clause"


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A plain download."""

    url: str


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel of the Python package index."""

    requirement: str
    """Exact, such as ``sports2d==0.8.34``."""
    sha256: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file inside a wheel, for machines that reach only a package index."""

    package: Package
    member: str


@dataclass(frozen=True, slots=True)
class UltralyticsSource:
    """An official release file, through ultralytics' own downloader."""

    asset: str


Source = HttpSource | PackageSource | UltralyticsSource


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as its publisher distributes it."""

    name: str
    """As the user names it."""
    filename: str
    licence: str
    sources: tuple[Source, ...]
    """In the order in which they are tried."""
    sha256: tuple[str, ...] = ()
    """Contents known to be official; empty when the publisher states none."""
    size_bytes: int | None = None
    own_content_allowed: bool = False
    """A local file with another content is the user's own and is used (retrained weights)."""


FASTCVAPP: Final = Package(
    "fastcvapp==0.2.1", "428b38d3db1d13e6c987daacf16933db8d51dd26f2b4e4fb5d6c045a090fe5fd"
)
POSE2SIM: Final = Package(
    "pose2sim==0.10.49", "403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1"
)
SPORTS2D: Final = Package(
    "sports2d==0.8.34", "733b6db70742636ae9c35d870c22bd416582f579abd5881bee93a14bb0e2655d"
)


def _mediapipe(
    variant: str, size_bytes: int, sha256: tuple[str, ...], *, packaged: bool
) -> PublishedFile:
    filename = f"pose_landmarker_{variant}.task"
    address = (
        "https://storage.googleapis.com/mediapipe-models/pose_landmarker/"
        f"pose_landmarker_{variant}/float16/latest/{filename}"
    )
    member = f"fastcvapp/examples/creativecommonsmedia/{filename}"
    sources: tuple[Source, ...] = (HttpSource(address),)
    if packaged:
        sources += (PackageSource(FASTCVAPP, member),)
    return PublishedFile(
        f"mediapipe-{variant}", filename, APACHE, sources, sha256=sha256, size_bytes=size_bytes
    )


def _yolo(name: str, sha256: str | None = None, size_bytes: int | None = None) -> PublishedFile:
    return PublishedFile(
        name,
        f"{name}.pt",
        AGPL,
        (UltralyticsSource(f"{name}.pt"),),
        sha256=(sha256,) if sha256 else (),
        size_bytes=size_bytes,
        own_content_allowed=True,
    )


def _clip(name: str, package: Package, member: str, size_bytes: int, sha256: str) -> PublishedFile:
    suffixes = member[member.rindex("/") + 1 :].partition(".")[2]
    return PublishedFile(
        name,
        f"{name}.{suffixes}",
        BSD,
        (PackageSource(package, member),),
        sha256=(sha256,),
        size_bytes=size_bytes,
    )


def _by_name(*files: PublishedFile) -> Mapping[str, PublishedFile]:
    return MappingProxyType({file.name: file for file in files})


MODELS: Final = _by_name(
    _mediapipe(
        "lite",
        5_777_746,
        ("59929e1d1ee95287735ddd833b19cf4ac46d29bc7afddbbf6753c459690d574a",),
        packaged=True,
    ),
    _mediapipe(
        "full",
        9_398_198,
        (
            "4eaa5eb7a98365221087693fcc286334cf0858e2eb6e15b506aa4a7ecdcec4ad",
            # The same model as published under float16/1 instead of float16/latest.
            "5134a3aad27a58b93da0088d431f366da362b44e3ccfbe3462b3827a839011b1",
        ),
        packaged=True,
    ),
    _mediapipe(
        "heavy",
        30_664_242,
        ("64437af838a65d18e5ba7a0d39b465540069bc8aae8308de3e318aad31fcbc7b",),
        packaged=False,
    ),
    # Ultralytics states no checksums. Those given here are what several independent public
    # projects recorded of release v8.4.0; where only one or none did, none is given.
    _yolo(
        "yolo11n-pose",
        "869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0",
        6_255_593,
    ),
    _yolo("yolo11s-pose"),
    _yolo("yolo11m-pose"),
    _yolo("yolo11l-pose"),
    _yolo("yolo11x-pose"),
    _yolo(
        "yolo26n-pose",
        "eb3bb8268828aeaf515cec23a4bfafd793944a86fe9af94ba7823609c14522a9",
        7_878_574,
    ),
    _yolo(
        "yolo26s-pose",
        "a083adb42303728ae14c4bd6bd56d80da46f82fb2564dbd6f31dcc92ea321646",
        24_151_790,
    ),
    _yolo("yolo26m-pose", "2fbf16367022256a226035695c5c389384c6706e8bb8ab8fcd0e7976f05443c4"),
    _yolo("yolo26l-pose"),
    _yolo("yolo26x-pose"),
)

CLIPS: Final = _by_name(
    _clip(
        "jumping-jacks",
        SPORTS2D,
        "Sports2D/Demo/demo.mp4",
        3_968_304,
        "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    ),
    _clip(
        "balance-cam01",
        POSE2SIM,
        "Pose2Sim/Demo_SinglePerson/videos/cam01.mp4",
        387_775,
        "cf4f2816c86bea4bfbea255333d8626ff32a3ecabdab8b0fb147cea9167fde3a",
    ),
    _clip(
        "balance-cam02",
        POSE2SIM,
        "Pose2Sim/Demo_SinglePerson/videos/cam02.mp4",
        540_548,
        "94ff87cf978b8406e8aa36ab3c5362e72848994e87652f0dc7a33c315e8e0442",
    ),
    _clip(
        "balance-cam03",
        POSE2SIM,
        "Pose2Sim/Demo_SinglePerson/videos/cam03.mp4",
        1_709_101,
        "b8b329f832f178f27ecb78d024d5026b96c6adb36c387bfe2c0af85eab8a11ca",
    ),
    _clip(
        "balance-cam04",
        POSE2SIM,
        "Pose2Sim/Demo_SinglePerson/videos/cam04.mp4",
        1_772_999,
        "b5c0e7863fd70d008e7178d3c556b045b0ea5f78fcd61ca548a0b2e807e641f7",
    ),
    _clip(
        "balance-calibration",
        POSE2SIM,
        "Pose2Sim/Demo_SinglePerson/calibration/Calib.qca.txt",
        4_843,
        "fd90e4bbae3278ef1dc0cdd42a34ee06bf88286f628a02c00a29407aa39e34c5",
    ),
    _clip(
        "two-people",
        POSE2SIM,
        "Pose2Sim/Demo_MultiPerson/videos/cam02.mp4",
        610_385,
        "8895092a7cf26359205a427b7ac2f4a935c2e0bd36d9b7a5140cb33faa468a6b",
    ),
)
