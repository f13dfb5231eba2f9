"""The embedded demo model of tramontane: weights, tokenizer and chat template in `model/`."""
