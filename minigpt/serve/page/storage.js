// Keep texts in this browser's storage, which has room for about 5 MB from all pages of this address.

// Whether there was room for the text
export function store(name, text) {
  try {
    localStorage.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}
