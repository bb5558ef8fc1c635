// Draws the page that explains one text, from the object in #data.
const explanation = JSON.parse(document.getElementById("data").textContent);
headline(explanation, explanation.loss.filter((value) => value !== null));
const drawn = drawExplanation(explanation);
steer(() => drawn);
for (const box of document.querySelectorAll(".scroll")) box.scrollLeft = 0; // every scrolling box begins at its left end
