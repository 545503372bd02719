"""Teachers, which write the rationales that SFT learns from.

The input is a prepared folder and the number of lists to draw. The output is a trace file with a rationale for each item of each
list. `protocol.py` defines a teacher and `synthesize.py` drives one; `template.py` fills in sentences, and
`language_model/` asks a language model.
"""
