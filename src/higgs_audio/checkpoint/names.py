"""Names of the files and folders of a checkpoint, and of the processor classes in processor_config.json."""

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
VOICES_FILE = "voices.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_FILE = "model.pth"  # weights of the original audio tokenizer; all other weights are safetensors
CODEC_FOLDER = "codec"  # the audio tokenizer of a checkpoint

PROCESSOR_CLASS = "HiggsAudioProcessor"
PROCESSOR_CLASS_OF_TRANSFORMERS = "HiggsAudioV2Processor"
PROCESSOR_CLASSES = (PROCESSOR_CLASS, PROCESSOR_CLASS_OF_TRANSFORMERS)
