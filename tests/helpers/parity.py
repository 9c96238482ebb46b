"""Conversations, inputs and comparisons for the tests against the classes of transformers."""

import inspect

import torch
from oracle import (
    K,
    V,
    make_config,
)
from transformers import HiggsAudioV2Model

CODES = 1024  # entries of a codebook in tests with the audio tokenizer
# Name of the cache in a call of transformers' model, before 5.24 and since 5.24.
CACHE = "cache" if "cache" in inspect.signature(HiggsAudioV2Model.forward).parameters else "past_key_values"
# The Hugging Face chat template, rewritten from the prompts that it renders: trimmed texts, a scene inside the system
# turn, audio as <|AUDIO_OUT|> everywhere and not in user turns, and an answer that is always audio.
CHAT_TEMPLATE = r"""
{%- set head = '<|start_header_id|>%s<|end_header_id|>\n\n' -%}
{%- set sound = '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -%}
{%- if messages[0].role != 'system' -%}{{ raise_exception('A system message is required') }}{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- set is_text = message.content is string -%}
  {%- set items = [{'type': 'text', 'text': message.content}] if is_text else message.content -%}
  {%- if message.role == 'scene' -%}
    {{- '\n\n<|scene_desc_start|>\n' -}}
    {%- for item in items -%}
      {{- item.text | trim if item.type == 'text' else ' ' + sound -}}
      {%- if not loop.last -%}
        {%- if item.type == 'text' and loop.first -%}{{ '\n\n' }}
        {%- elif item.type == 'audio' or loop.nextitem.type == 'text' -%}{{ '\n' }}
        {%- endif -%}
      {%- endif -%}
    {%- endfor -%}
    {{- '\n<|scene_desc_end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {%- if items[0].type != 'audio' -%}{{ raise_exception('Assistant messages must contain audio') }}{%- endif -%}
    {{- head % 'assistant' + sound -}}
  {%- else -%}
    {{- head % message.role -}}
    {%- for item in items if item.type == 'text' -%}{{ item.text | trim }}{%- endfor -%}
  {%- endif -%}
  {%- if loop.last or loop.nextitem.role != 'scene' -%}{{ '<|eot_id|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ head % 'assistant' + '<|audio_out_bos|>' }}{%- endif -%}
"""


def config_for(tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": ids("<|eot_id|>")}
    return make_config(
        text,
        audio_codebook_size=CODES,
        audio_bos_token_id=ids("<|audio_bos|>"),
        audio_eos_token_id=ids("<|audio_eos|>"),
        audio_out_bos_token_id=ids("<|audio_out_bos|>"),
        audio_delay_token_id=ids("<|reserved_special_token_6|>"),
        audio_in_token_idx=ids("<|AUDIO|>"),
        audio_out_token_idx=ids("<|AUDIO_OUT|>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids("<|eot_id|>"),
    )


def message(role, *items):
    """Returns a message of texts and audio items (dicts)."""
    return {
        "role": role,
        "content": [item if isinstance(item, dict) else {"type": "text", "text": item} for item in items],
    }


def audio_item(path):
    return {"type": "audio", "path": str(path)}


def plain():
    return [
        message("system", "Generate audio following instruction."),
        message("scene", "Quiet room."),
        message("user", "Hi."),
    ]


def clone(*paths):
    turns = [
        turn for path in paths for turn in (message("user", " A reference."), message("assistant", audio_item(path)))
    ]
    return [message("system", "Generate audio following instruction. "), *turns, message("user", "Hello, you.")]


def their_inputs(stack, conversation, **options):
    return stack.their_processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def assert_near(ours, theirs, bound=1e-5):
    """Asserts that the difference is less than `bound` of the largest value."""
    assert float((ours - theirs).abs().max()) < bound * float(theirs.abs().max())


class scripted:
    """A context in which a model's audio head predicts the ids of a script, one list of K ids in each forward pass."""

    def __init__(self, model, script):
        self.model, self.script = model, script

    def __enter__(self):
        rows = iter(self.script)

        def predict(module, inputs, output):
            logits = torch.zeros(*output.shape[:2], K, V + 2)
            logits[..., range(K), next(rows)] = 5.0
            return logits.flatten(2)

        self.hook = self.model.audio_lm_head.register_forward_hook(predict)

    def __exit__(self, *_):
        self.hook.remove()
