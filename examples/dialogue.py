"""Continue a dialogue of two speakers, each with the voice of a recording, and write output.wav.

    python examples/dialogue.py [CHECKPOINT] [RECORDING of speaker 0] [RECORDING of speaker 1]

Replace the transcripts by the words of your own recordings.
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
transcript_0 = "I hear that you can understand what people say and even know their age and gender, so can you guess my age and gender from my voice?"
transcript_1 = "Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel."
reference_0 = sys.argv[2] if len(sys.argv) > 2 else generate_recording("ava", transcript_0, "reference_0.wav")
reference_1 = sys.argv[3] if len(sys.argv) > 3 else generate_recording("joe", transcript_1, "reference_1.wav")

processor = AutoProcessor.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")
model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")

system_text = f"""As an AI assistant, your task is to convert written text into spoken words.
    If the user's input begins with a [SPEAKER*] tag, omit the tag and create speech based on the following content using the designated voice.
    Without a speaker tag, choose the most suitable voice for the text.
"""

conversation = [
    {"role": "system", "content": system_text},
    {"role": "user", "content": f"[SPEAKER0] {transcript_0}"},
    {"role": "assistant", "content": [{"type": "audio", "audio_url": reference_0}]},
    {"role": "user", "content": f"[SPEAKER1] {transcript_1}"},
    {"role": "assistant", "content": [{"type": "audio", "audio_url": reference_1}]},
    {"role": "user", "content": "[SPEAKER0] It is a doctrine of comfort and complacency, and, like all gospels, it tells its followers precisely what they wish to hear."},
]
inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True).to(torch_device)

outputs = model.generate(**inputs, max_length=1024, temperature=0.3, top_p=0.95, top_k=50, tokenizer=processor.tokenizer, do_sample=True)

response = processor.decode(outputs[0], outputs[1], prompt_token_length=processor.get_prompt_len(inputs.input_ids))

processor.save_audio(response.audio, "output.wav")
