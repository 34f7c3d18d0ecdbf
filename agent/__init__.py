"""The device's side: takes tasks over MQTT, runs their WebAssembly modules under limits, reports what happened.

Layers, only rightwards: ``cli -> app -> adapters -> ports -> core -> wire, topics``. See ARCHITECTURE.md.
"""
