"""Faces of other memory systems over Loci's: their programs run with another import.

`mem0` is Mem0's `Memory`, `a_mem` A-MEM's `AgenticMemorySystem`, `memos` MemOS's `MOS` and
`GeneralMemCube`, `langgraph` a store of LangGraph.
Each says in its docstring where it differs.
"""
