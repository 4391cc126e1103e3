"""Attention over sequences that are split between ranks: upstream's ``--cp-comm-type``.

The sequence is cut into ``2 * ranks`` pieces, of which rank ``i`` has the pieces ``i`` and ``2 * ranks - 1 - i``, so
that causal attention is the same work for all (upstream's ``get_batch_on_this_cp_rank``). Of packed sequences each is
cut like that. What a rank hands in and gets back is in this order.

| module | |
| --- | --- |
| ``layout`` | from the order of the ranks to that of the sequence, and back |
| ``batch`` | a rank's part of a packed sample |
| ``exchange`` | collectives with a gradient |
| ``ring`` | ``p2p``: keys and values go round, the parts are merged by their statistics |
| ``gathered`` | ``allgather``: every key and value for the own queries |
| ``heads`` | ``a2a``: the whole sequence for some of the heads; ``a2a+p2p``: a ring of such groups |
| ``limits`` | what each of them takes, said before anything is computed |
"""
