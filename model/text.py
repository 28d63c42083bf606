"""What the model says in words: here, the shape it would choose for a picture."""

from torch import Tensor

from model.prefix import compute_prefix
from model.template import Prompt, Template
from model.tokenizer import Tokenizer
from model.transformer import HunyuanImage


def ratio_logits(
    transformer: HunyuanImage,
    tokenizer: Tokenizer,
    template: Template,
    prompt: Prompt,
    num_ratios: int,
) -> Tensor:
    """Return the model's logits for each `<img_ratio_i>` as the shape of a prompt's picture.

    Shapes: -> logits_Z float32 with Z = num_ratios.
    """
    ids = template.text_head(prompt, "img_ratio")
    last_1SD = compute_prefix(transformer, ids).hidden_1SD[:, -1:]
    ratios = [tokenizer.control_id(f"<img_ratio_{i}>") for i in range(num_ratios)]
    return transformer.text_logits(last_1SD)[0, 0, ratios]
