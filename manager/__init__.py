"""The control plane: knows the proplets, places tasks on them, keeps their results, and hosts the broker between them.

Layers, only rightwards: ``app -> api, controller, adapters -> ports -> core -> model, phases``; of the agent it uses
only the wire, the topics and the one MQTT adapter. See ARCHITECTURE.md.
"""
