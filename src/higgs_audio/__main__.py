"""The command line, as `python -m higgs_audio` and `torchrun -m higgs_audio train lm RECIPE` run it."""

from higgs_audio.cli.main import main

main()
