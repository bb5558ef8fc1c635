// The page of one text: draws the object in #data.
const explanation = JSON.parse(document.getElementById("data").textContent);
headline(explanation, explanation.loss.filter((value) => value !== null));
const drawn = drawExplanation(explanation);
steer(() => drawn);
for (const box of document.querySelectorAll(".scroll")) box.scrollLeft = 0; // a text is read from its start
