"""The strings of the prompt format: special tokens, and the tags that name the speaker of a turn."""

import re

BEGIN = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
HEADER_START = "<|start_header_id|>"
HEADER_END = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
AUDIO_BOS = "<|audio_bos|>"
AUDIO_EOS = "<|audio_eos|>"
AUDIO_OUT_BOS = "<|audio_out_bos|>"
AUDIO_DELAY = "<|reserved_special_token_6|>"  # placeholder of the last K - 1 columns of an assistant's audio
AUDIO_IN = "<|AUDIO|>"
AUDIO_OUT = "<|AUDIO_OUT|>"
RECIPIENT = "<|recipient|>"
SCENE_START = "<|scene_desc_start|>"
SCENE_END = "<|scene_desc_end|>"
INSTRUCTION_START = "<|generation_instruction_start|>"
INSTRUCTION_END = "<|generation_instruction_end|>"
SOUND_TAGS = ("<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>")

# In the order of their ids in the published tokenizer: 128000, 128001, 128004, 128006 to 128009, 128011 to 128027.
SPECIAL_TOKENS = (
    *(BEGIN, END_OF_TEXT, PAD, HEADER_START, HEADER_END, END_OF_MESSAGE, END_OF_TURN),
    *(AUDIO_BOS, AUDIO_EOS, AUDIO_OUT_BOS, AUDIO_DELAY, AUDIO_IN, AUDIO_OUT, RECIPIENT),
    *(SCENE_START, SCENE_END, INSTRUCTION_START, INSTRUCTION_END, *SOUND_TAGS),
)

USER_HEADER = f"{HEADER_START}user{HEADER_END}\n\n"  # precedes the text of a user turn

# User text that matches is rejected, whether or not the tokenizer has such a token.
SPECIAL_TOKEN_PATTERN = re.compile(r"<\|[^<>|\s]+\|>")
# Ordinary text, not a special token; begins each speaker's text in a conversation of several speakers.
SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]")
