"""URIEL's vectors: from the package, without holes, for source and target."""

from __future__ import annotations

import numpy as np
import pytest

from localgp.contexts import lang2vec
from localgp.contexts.lang2vec import LanguageVectors, language_vector
from localgp.errors import ConfigError

KNN = ["syntax_knn", "phonology_knn", "inventory_knn"]


def test_vectors_are_the_packages():
    vector = language_vector("de", KNN)
    assert vector.shape == (289,)
    assert vector.dtype == np.float32
    assert set(vector.tolist()) <= {0.0, 1.0}
    expected = lang2vec._package().get_features(["deu"], "+".join(KNN))["deu"]
    assert vector.tolist() == [float(value) for value in expected]
    np.testing.assert_array_equal(vector, language_vector("deu", KNN))


def test_missing_values_are_the_knn_sets():
    given = lang2vec._package().get_features(["ita"], "syntax_average")["ita"]
    missing = np.array([value == "--" for value in given])
    assert 0 < missing.sum() < len(given)
    vector, nearest = language_vector("it", ["syntax_average"]), language_vector("it", ["syntax_knn"])
    assert np.isfinite(vector).all()
    np.testing.assert_array_equal(vector[missing], nearest[missing])
    known = [float(value) for value in given if value != "--"]
    np.testing.assert_allclose(vector[~missing], known, rtol=1e-6)


def test_context_has_source_and_target():
    vectors = LanguageVectors(["syntax_knn"])
    assert vectors.size == 206
    context = vectors.of(["de", "de-fr", "fr-de"]).numpy()
    assert context.shape == (3, 1, 206)
    german, french = language_vector("de", ["syntax_knn"]), language_vector("fr", ["syntax_knn"])
    np.testing.assert_array_equal(context[0, 0], np.concatenate([german, german]))
    np.testing.assert_array_equal(context[1, 0], np.concatenate([german, french]))
    np.testing.assert_array_equal(context[2, 0], np.concatenate([french, german]))
    assert not np.array_equal(german, french)


def test_unknown_language_names_valid_ones():
    with pytest.raises(
        ConfigError, match=r"URIEL has no language 'dex'; valid are two-letter.*nearest of which are \w{3}, "
    ):
        language_vector("dex", ["syntax_knn"])
    with pytest.raises(ConfigError, match="unknown language 'qq'; valid are codes of two letters"):
        language_vector("qq", ["syntax_knn"])


@pytest.mark.parametrize("sets", [["syntax"], [], ["learned"]])
def test_unknown_feature_set_names_valid_ones(sets):
    with pytest.raises(
        ConfigError, match=r"contexts.lang2vec.features is .*valid: one or more of syntax_knn"
    ):
        LanguageVectors(sets)
