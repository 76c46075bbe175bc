"""Tab in which people read the documents of a release."""

from leam_mm.serving import gradio_parts, page_parts
from leam_mm.serving.tab_context import TabContext


def add_documents_tab(context: TabContext) -> None:
    """Add the tab, if the release has documents in the language of the page."""
    texts, documents = context.texts, context.release.documents
    offered = {document.name: document for document in documents.in_language(texts.language)}
    if not offered:
        return
    first = next(iter(offered.values()))
    with gradio_parts.tab(texts.documents_tab, "documents"):
        choices = [(texts.card if one.is_card else one.title, name) for name, one in offered.items()]
        chosen = gradio_parts.choice(texts.document, choices, first.name, visible=len(choices) > 1)
        shown = gradio_parts.html(page_parts.document(documents, first))
        gradio_parts.html(page_parts.files(documents, texts))
        gradio_parts.on_change(chosen, lambda name: page_parts.document(documents, offered.get(name, first)), shown)
