"""From a data set's files to batches, in rooms by stage of life; each room imports only from those before it.

In comes a public data set or a log of one's own. `sources`, `fetch` and `prepare` turn it into a prepared folder, which
`prepared` reads back; `prompts` and `batches` turn that into what a model reads; `teacher` writes the rationales that
SFT learns from; `audit` and `card` check and describe what was prepared.
"""
