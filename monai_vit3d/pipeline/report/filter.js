const form = document.querySelector("form.filter"), cards = [...document.querySelectorAll("section.result")];
form.hidden = false;
form.oninput = () => {
  const part = form.name.value.trim().toLowerCase(), kind = form.kind ? form.kind.value : "result";
  for (const card of cards)
    card.hidden = !(card.classList.contains(kind) && card.querySelector("h3").textContent.toLowerCase().includes(part));
  form.count.value = `${cards.filter(card => !card.hidden).length} of ${cards.length} on this page`;
};
form.onsubmit = () => false;
