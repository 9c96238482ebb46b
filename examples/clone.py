"""Clone the voice of a recording, and write output.wav.

    python examples/clone.py [CHECKPOINT] [RECORDING, a path or URL]

Replace `transcript` by the words of your own recording.
"""

import sys

import torch

import higgs_audio
import higgs_audio.audio
from higgs_audio import HiggsAudioForConditionalGeneration, AutoProcessor, AutoTokenizer


def generate_recording(voice, text, path):
    """Generates a recording with nano, for a run without a recording of your own."""
    speech = higgs_audio.HiggsAudio.from_pretrained("nano").generate(text, voice=voice, seed=0)
    higgs_audio.audio.write(speech.waveform, path)
    return path


torch_device = "cuda" if torch.cuda.is_available() else "cpu"
checkpoint = sys.argv[1] if len(sys.argv) > 1 else higgs_audio.NANO
transcript = "I hear that you can understand what people say and even know their age and gender, so can you guess my age and gender from my voice?"
reference = sys.argv[2] if len(sys.argv) > 2 else generate_recording("ava", transcript, "reference.wav")

processor = AutoProcessor.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")
model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")

conversation = [
    {"role": "system", "content": "Generate audio following instruction with the same voice.\n\n<|scene_desc_start|>\nAudio is recorded from a quiet room.\n<|scene_desc_end|>"},
    {"role": "user", "content": transcript},
    {"role": "assistant", "content": [{"type": "audio", "audio_url": reference}]},
    {"role": "user", "content": "The sun rises in the east and sets in the west. This simple fact has been observed by humans for thousands of years."},
]
inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True).to(torch_device)

outputs = model.generate(**inputs, max_length=1024, temperature=0.3, top_p=0.95, top_k=50, tokenizer=processor.tokenizer, do_sample=True)

response = processor.decode(outputs[0], outputs[1], prompt_token_length=processor.get_prompt_len(inputs.input_ids))

processor.save_audio(response.audio, "output.wav")
