"""`python -m higgs_audio`, and `torchrun -m higgs_audio train lm RECIPE`: the command line."""

from higgs_audio.cli.main import main

main()
