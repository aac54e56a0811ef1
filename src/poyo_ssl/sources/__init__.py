"""Files of others, turned into recordings.

What a source is: base; a conversion: run; which source a path is for: registry. The sources: allen (NWB 1), nwb (NWB 2
and DANDI 000728), brainsets, suite2p, arrays, events. A new format of tables: tables; of stimuli: coding.
"""
