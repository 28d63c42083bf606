"""Prompt template: the sections of a sequence, from system prompt to image, as token ids.

A section is encoded on its own, never across its border, as the reference does. In the
unconditional row every token of a masked section becomes `<cfg>`, one for one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model.generation_config import TemplateName
from model.image_block import SEPARATOR, ImageBlock, ImageGrid
from model.tokenizer import Tokenizer

TextTask = Literal["image", "auto", "think", "recaption", "img_ratio"]

_TAGGED = re.compile(r"<(think|recaption)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Section:
    """Neighbouring tokens; those of a masked section become `<cfg>` in the unconditional row."""

    ids: tuple[int, ...]
    is_masked: bool = False
    image: ImageGrid | None = None


def place_blocks(sections: Sequence[Section]) -> tuple[ImageBlock, ...]:
    """Return where the input images of sections stand in their sequence."""
    blocks, start = [], 0
    for section in sections:
        if section.image is not None:
            blocks.append(ImageBlock.after(start, section.image))
        start += len(section.ids)
    return tuple(blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What stands in one row before its image: texts, and input images before the user's text."""

    text: str
    images: tuple[ImageGrid, ...] = ()
    system_prompt: str | None = None
    cot_text: str | None = None
    drop_think: bool = False


class Template:
    """Builds the sections before and after the image for one checkpoint."""

    def __init__(
        self, tokenizer: Tokenizer, name: TemplateName, base_size: int, parse_control: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._is_instruct = name == "instruct"
        self._size_token = f"<img_size_{base_size}>"
        encode = tokenizer.encode_control if parse_control else tokenizer.encode
        self._encode: Callable[[str], list[int]] = encode

    def image_head(self, prompt: Prompt, ratio_index: int) -> list[Section]:
        """Return everything before `<timestep>` when an image of this ratio follows."""
        return [
            *self._turn(prompt),
            *([self._control("<answer>")] if self._is_instruct else []),
            self._control("<boi>", self._size_token, f"<img_ratio_{ratio_index}>"),
        ]

    def image_tail(self) -> list[int]:
        """Return the ids after the last image token; no image token ever attends to them."""
        ids = [self._tokenizer.control_id("<eoi>")]
        if self._is_instruct:
            ids += [self._tokenizer.control_id("</answer>"), *self._encode("\n\n")]
        return ids

    def image_blocks(self, prompt: Prompt) -> tuple[ImageBlock, ...]:
        """Return where a prompt's input images stand, whatever follows them."""
        return place_blocks(self._turn(prompt))

    def text_head(self, prompt: Prompt, task: TextTask) -> list[int]:
        """Return the ids before the text, or the aspect ratio, that `task` generates."""
        sections = self._turn(prompt, with_assistant=task != "image")
        if task in ("think", "recaption"):
            sections.append(self._control(f"<{task}>"))
        elif task == "img_ratio":
            if self._is_instruct:
                sections.append(self._control("<answer>"))
            sections.append(self._control("<boi>", self._size_token))
        return [token for section in sections for token in section.ids]

    def unconditional(self, sections: Sequence[Section]) -> list[Section]:
        """Return the same sections with every masked token replaced by `<cfg>`."""
        cfg = self._tokenizer.control_id("<cfg>")
        return [replace(s, ids=(cfg,) * len(s.ids)) if s.is_masked else s for s in sections]

    def blank(self) -> Section:
        """Return the section of an empty prompt: one `<cfg>`, as for a dropped caption."""
        return Section((self._tokenizer.control_id("<cfg>"),), is_masked=True)

    def _turn(self, prompt: Prompt, with_assistant: bool = True) -> list[Section]:
        sections = [self._control("<|startoftext|>")]
        if prompt.system_prompt:
            sections.append(self._text(prompt.system_prompt))
            if self._is_instruct:
                sections.append(self._text("\n\n"))
        if self._is_instruct:
            sections.append(self._text("User: "))
        sections += map(self._image, prompt.images)
        sections.append(self._text(prompt.text, is_masked=True) if prompt.text else self.blank())
        if self._is_instruct:
            sections.append(self._text("\n\n"))
            if with_assistant:
                sections.append(self._text("Assistant: "))
        return sections + self._thoughts(prompt.cot_text or "", prompt.drop_think)

    def _thoughts(self, text: str, drop_think: bool) -> list[Section]:
        """Split generated text at its tags; the tags stay in the unconditional row."""
        sections: list[Section] = []
        end = 0
        for match in _TAGGED.finditer(text):
            sections.append(self._text(text[end : match.start()], is_masked=True))
            tag, body = match.groups()
            if not (drop_think and tag == "think"):
                sections.append(self._control(f"<{tag}>"))
                sections.append(self._text(body, is_masked=True))
                sections.append(self._control(f"</{tag}>"))
            end = match.end()
        sections.append(self._text(text[end:], is_masked=True))
        return [section for section in sections if section.ids]

    def _image(self, grid: ImageGrid) -> Section:
        tokens = (
            "<boi>", self._size_token, f"<img_ratio_{grid.ratio_index}>", "<timestep>",
            *("<img>",) * (grid.height * grid.width), SEPARATOR,
            *("<img>",) * grid.num_slots, "<eoi>",
        )  # fmt: skip
        return replace(self._control(*tokens), image=grid)

    def _text(self, text: str, is_masked: bool = False) -> Section:
        return Section(tuple(self._encode(text)), is_masked)

    def _control(self, *tokens: str) -> Section:
        return Section(tuple(map(self._tokenizer.control_id, tokens)))
