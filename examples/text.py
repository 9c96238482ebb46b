"""Generate speech from a text, and write output.wav.

    python examples/text.py [CHECKPOINT]
"""

import sys

import torch

import higgs_audio
from higgs_audio import HiggsAudioForConditionalGeneration, AutoProcessor, AutoTokenizer

torch_device = "cuda" if torch.cuda.is_available() else "cpu"
checkpoint = sys.argv[1] if len(sys.argv) > 1 else higgs_audio.NANO

processor = AutoProcessor.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")
model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")

conversation = [
    {"role": "system", "content": "Generate audio following instruction.\n\n<|scene_desc_start|>\nAudio is recorded from a quiet room.\n<|scene_desc_end|>"},
    {"role": "user", "content": "The sun rises in the east and sets in the west. This simple fact has been observed by humans for thousands of years."},
]
inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True).to(torch_device)

outputs = model.generate(**inputs, max_length=1024, temperature=0.3, top_p=0.95, top_k=50, tokenizer=processor.tokenizer, do_sample=True)

response = processor.decode(outputs[0], outputs[1], prompt_token_length=processor.get_prompt_len(inputs.input_ids))

processor.save_audio(response.audio, "output.wav")
