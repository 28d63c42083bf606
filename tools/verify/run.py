"""All groups of a recording, in order, with the reason for every one that is skipped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.load import Pipeline
from tools.verify import groups
from tools.verify.checks import Check
from tools.verify.edit_case import EditCase
from tools.verify.edit_groups import check_edit_pictures, check_edit_sizes
from tools.verify.edit_text import check_edit_text, check_edit_tokens
from tools.verify.image_case import ImageCase
from tools.verify.recording import Recording
from tools.verify.text_group import check_auto_case, check_text

GroupCheck = Callable[[Pipeline, Recording], Iterator[Check]]

_GROUPS: dict[str, tuple[str, GroupCheck]] = {
    "names": ("param_names.json", groups.check_names),
    "schedules": ("schedules.safetensors", groups.check_schedules),
    "noise": ("noise.safetensors", groups.check_noise),
    "resolutions": ("resolutions.json", groups.check_resolutions),
    "tokens": ("tokens.json", groups.check_tokens),
    "vae": ("vae.safetensors", groups.check_vae),
    "vit": ("vit.safetensors", groups.check_vit),
    "ar": ("ar.safetensors", check_text),
    "edit_sizes": ("edit_sizes.json", check_edit_sizes),
    "edit_pictures": ("edit_pictures.json", check_edit_pictures),
    "edit_tokens": ("edit_tokens.json", check_edit_tokens),
    "edit_text": ("edit_text.json", check_edit_text),
}


@dataclass(frozen=True, slots=True)
class Group:
    """A named part of the recording: its checks, or why it is skipped."""

    name: str
    checks: Iterator[Check]
    skipped: str = ""


def group_names(recording: Recording) -> list[str]:
    """Return the names of every group of a recording, image cases last."""
    files = [name for name, (file_name, _) in _GROUPS.items() if recording.has(file_name)]
    return [*files, *recording.cases, *(r.folder.name for r in recording.inner())]


def list_groups(pipeline: Pipeline, recording: Recording, only: set[str]) -> Iterator[Group]:
    """Yield every group of the recording; `only` limits them by name, empty means all."""
    for name, (file_name, check) in _GROUPS.items():
        if recording.has(file_name):
            yield _limited(Group(name, check(pipeline, recording)), only)
    for name, case in recording.cases.items():
        if case.get("images"):
            yield _limited(Group(name, _check_edit(pipeline, recording, name)), only)
        elif case.get("image_size") == "auto":
            yield _limited(Group(name, check_auto_case(pipeline, recording, name)), only)
        else:
            yield _limited(Group(name, _check_case(pipeline, recording, name)), only)
    for inner in recording.inner():
        yield _limited(Group(inner.folder.name, _check_all(pipeline, inner)), only)


def _check_all(pipeline: Pipeline, recording: Recording) -> Iterator[Check]:
    """Yield the checks of every group of a recording that lies in another one's folder."""
    for group in list_groups(pipeline, recording, set()):
        yield from group.checks


def _check_case(pipeline: Pipeline, recording: Recording, name: str) -> Iterator[Check]:
    yield from ImageCase(pipeline, recording, name).checks()


def _check_edit(pipeline: Pipeline, recording: Recording, name: str) -> Iterator[Check]:
    yield from EditCase(pipeline, recording, name).checks()


def _limited(group: Group, only: set[str]) -> Group:
    if only and group.name not in only:
        return Group(group.name, iter(()), "not among the chosen groups")
    return group
