"""From the files of a data set to batches of arrays. Subpackages import only from earlier ones.

The order is sources, prepared, fetch, prepare, prompts, batches, teacher, audit, card: each may import only from those
before it.

The input is a public data set or your own interaction log. `sources`, `fetch` and `prepare` turn it into a prepared
folder, which `prepared` reads back. `prompts` and `batches` turn that folder into the arrays that a model reads.
`teacher` writes the rationales that SFT learns from. `audit` and `card` check and describe a prepared folder.
"""
